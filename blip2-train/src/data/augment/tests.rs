use super::*;
use proptest::prelude::*;

fn rng(i: u64) -> KeyedRng {
    KeyedRng::numbered(3, "test", &[i])
}

/// A dot at (x, y) on black.
fn dot(x: u32, y: u32) -> RgbImage {
    RgbImage::from_fn(40, 30, |i, j| {
        image::Rgb(if (i, j) == (x, y) { [255; 3] } else { [0; 3] })
    })
}

/// Centre of the light in an otherwise black picture (fill ignored).
fn centre(image: &RgbImage) -> (f64, f64) {
    let (mut sum, mut x, mut y) = (0.0, 0.0, 0.0);
    for (i, j, p) in image.enumerate_pixels().filter(|(_, _, p)| p.0 != pil::FILL) {
        let v = f64::from(p.0[0]);
        (sum, x, y) = (sum + v, x + v * f64::from(i), y + v * f64::from(j));
    }
    (x / sum, y / sum)
}

#[test]
fn warps_move_points_as_the_matrices_of_appendix_b_do() {
    let moved = |op: Op, negative, x: f64, y: f64| -> (f64, f64) {
        let s = if negative { -1.0 } else { 1.0 };
        let (sin, cos) = (15.0f64 * s).to_radians().sin_cos();
        match op {
            Op::ShearX => (x + 0.15 * s * y, y),
            Op::ShearY => (x, y + 0.15 * s * x),
            Op::TranslateX => (x - 5.0 * s, y),
            Op::TranslateY => (x, y - 5.0 * s),
            // OpenCV's getRotationMatrix2D about (W/2, H/2), counter-clockwise
            _ => (
                cos * x + sin * y + (1.0 - cos) * 20.0 - sin * 15.0,
                -sin * x + cos * y + sin * 20.0 + (1.0 - cos) * 15.0,
            ),
        }
    };
    for op in [Op::ShearX, Op::ShearY, Op::TranslateX, Op::TranslateY, Op::Rotate] {
        for negative in [false, true] {
            let mut image = dot(22, 13);
            op.apply(&mut image, 5.0, negative);
            let (got, want) = (centre(&image), moved(op, negative, 22.0, 13.0));
            // bilinear spreading of one dot and truncation shift its centre by a few hundredths
            assert!(
                (got.0 - want.0).abs() < 0.1 && (got.1 - want.1).abs() < 0.1,
                "{op:?} {got:?} {want:?}"
            );
        }
    }
}

#[test]
fn level_five_leaves_brightness_and_sharpness_alone() {
    let image = RgbImage::from_fn(9, 9, |x, y| image::Rgb([(x * 20) as u8, (y * 20) as u8, 7]));
    for op in [Op::Brightness, Op::Sharpness, Op::Identity] {
        let mut out = image.clone();
        op.apply(&mut out, 5.0, false);
        assert_eq!(out, image, "{op:?}");
    }
}

#[test]
fn crops_follow_their_distribution() {
    let crop = RandomCrop::default();
    let (mut areas, mut logs) = (Vec::new(), Vec::new());
    for i in 0..4000 {
        let b = crop.draw(1000, 1000, &mut rng(i));
        let (w, h) = (f64::from(b.right - b.left), f64::from(b.bottom - b.top));
        areas.push(w * h / 1e6);
        logs.push((w / h).ln());
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    // the log ratio is symmetric about 0, sd 0.166 at most: 4000 draws give +- 0.0105 at 4 sigma
    assert!(mean(&logs).abs() < 0.0105, "{}", mean(&logs));
    // Boxes that stick out are redrawn: with |ln ratio| uniform on [0, 0.2877], an area a above 0.75 stays with
    // probability -ln a / 0.2877, which makes the mean 0.6915; sd 0.115 over 4000 draws, 4 sigma = 0.0073.
    assert!((mean(&areas) - 0.6915).abs() < 0.0073, "{}", mean(&areas));
    assert!(areas.iter().all(|a| (0.498..=1.0).contains(a)));
}

proptest! {
    #[test]
    fn any_picture_gives_the_asked_size(w in 1u32..90, h in 1u32..90, seed in any::<u64>(), name in 0usize..4) {
        let image = RgbImage::from_fn(w, h, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let transform = Transform::named(TRANSFORMS[name], 32).unwrap();
        let run = || transform.apply(image.clone(), &mut rng(seed)).unwrap();
        let out = run();
        prop_assert_eq!(out.dimensions(), (32, 32));
        prop_assert_eq!(out, run());
        let b = RandomCrop::default().draw(w, h, &mut rng(seed));
        prop_assert!(b.left < b.right && b.right <= w && b.top < b.bottom && b.bottom <= h);
    }
}

#[test]
fn settings_are_checked() {
    assert!(Transform::named("blip_image", 224).is_err());
    let train = |crop, flip| {
        Transform::Train {
            size: 224,
            crop,
            flip,
            rand_augment: None,
        }
        .check()
    };
    assert!(train(RandomCrop::default(), 0.5).is_ok());
    assert!(
        train(
            RandomCrop {
                scale: (0.9, 0.5),
                ..RandomCrop::default()
            },
            0.5
        )
        .is_err()
    );
    assert!(
        train(
            RandomCrop {
                ratio: (0.0, 1.0),
                ..RandomCrop::default()
            },
            0.5
        )
        .is_err()
    );
    assert!(train(RandomCrop::default(), f64::NAN).is_err());
    assert!(Transform::Resize { size: 0 }.check().is_err());
}

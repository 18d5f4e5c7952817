use super::super::testing::tar_bytes;
use super::*;
use proptest::prelude::*;

fn shard(data: &[u8], fields: TarFields, offset: u64) -> TarShard<Sequential<&[u8]>> {
    TarShard::new(Sequential(data), "s.tar".into(), fields, offset)
}

/// "key:captions" or "key!problem" of every sample.
fn summary(data: &[u8]) -> Vec<String> {
    let mut s = shard(data, TarFields::default(), 0);
    std::iter::from_fn(|| s.next_sample(true))
        .map(|r| match r {
            Ok(sample) => sample
                .map(|s| format!("{}:{}", s.key, s.captions.join("|")))
                .unwrap_or_default(),
            Err(skip) => format!("{}!{}", skip.key, skip.problem.kind()),
        })
        .collect()
}

#[test]
fn keys_split_at_the_first_dot_of_the_base_name() {
    let split =
        |s: &'static str| key_and_extension(s.as_bytes()).map(|(k, e)| (std::str::from_utf8(k).unwrap(), e));
    // expected values from webdataset.tariterators.base_plus_ext
    assert_eq!(split("a/b.c/d.seg.PNG"), Some(("a/b.c/d", "seg.png".into())));
    assert_eq!(split("x.jpg"), Some(("x", "jpg".into())));
    assert_eq!(
        (split("noext"), split("a/.hidden"), split("__m.x__")),
        (None, None, None)
    );
}

#[test]
fn captions_from_json_list_object_and_text() {
    let data = tar_bytes(&[
        ("a.jpg", b"1"),
        ("a.json", br#"["best","second"]"#),
        ("a.txt", b"ignored"),
        ("b.txt", b" from text \n"),
        ("b.json", br#"{"width":3}"#),
        ("b.png", b"2"),
        ("dir/c.webp", b"3"),
        ("dir/c.json", br#"{"caption":"one"}"#),
        ("dir/c.npy", b"ignored"),
    ]);
    assert_eq!(summary(&data), ["a:best|second", "b:from text", "dir/c:one"]);
}

#[test]
fn labels_are_zero_or_one_in_any_spelling() {
    let labels = [
        "1", "0", "true", "false", "\"1\"", "\" 0 \"", "7", "null", "[1]", "0.5",
    ];
    let members: Vec<(String, String)> = labels
        .iter()
        .enumerate()
        .flat_map(|(i, label)| {
            let row = format!("{{\"caption\":\"x\",\"label\":{label}}}");
            [(format!("{i}.jpg"), "1".into()), (format!("{i}.json"), row)]
        })
        .collect();
    let members: Vec<(&str, &[u8])> = members
        .iter()
        .map(|(name, body)| (name.as_str(), body.as_bytes()))
        .collect();
    let data = tar_bytes(&members);
    let mut shard = shard(&data, TarFields::default(), 0);
    let read = std::iter::from_fn(|| shard.next_sample(true)).map(|sample| sample.unwrap().unwrap().label);
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(
        read.collect::<Vec<_>>(),
        [yes, no, yes, no, yes, no, None, None, None, None]
    );
}

#[test]
fn each_bad_sample_is_named_and_costs_nothing_else() {
    let mut data = tar_bytes(&[
        ("a.jpg", b"1"),
        ("a.txt", b"\xff"),
        ("b.txt", b"no picture"),
        ("c.jpg", b"1"),
        ("c.json", b"{"),
        ("d.jpg", b"1"),
        ("e.jpg", b"1"),
        ("e.txt", b"ok"),
        ("f.jpg", b"1"),
        ("f.txt", b"damaged header"),
        ("e.jpg", b"1"),
        ("e.txt", b"same key again"),
        ("e.txt", b"and again"),
    ]);
    data[512 * 2 * 9 + 3] ^= 1; // header of f.txt
    assert_eq!(
        summary(&data),
        [
            "a!not_utf8",
            "b!missing_image",
            "c!bad_record",
            "d:",
            "e:ok",
            "f:",
            "!corrupt_header",
            "e:same key again",
            "e!missing_image",
        ]
    );
}

#[test]
fn limits_hold() {
    let fields = TarFields {
        member_bytes: 10,
        members: 3,
        ..TarFields::default()
    };
    let many: Vec<(String, &[u8])> = (0..6).map(|i| (format!("b.x{i}"), b"" as &[u8])).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("a.jpg", &[1; 11]), ("a.txt", b"t")];
    files.extend(many.iter().map(|(n, b)| (n.as_str(), *b)));
    files.extend([("c.jpg", b"1" as &[u8]), ("c.npy", &[0; 100])]);
    let data = tar_bytes(&files);
    let mut s = shard(&data, fields, 0);
    let kinds: Vec<_> = std::iter::from_fn(|| s.next_sample(true))
        .map(|r| r.map_err(|s| s.problem.kind()).map(|s| s.unwrap().key))
        .collect();
    assert_eq!(kinds, [Err("too_large"), Err("too_many_members"), Ok("c".into())]);
}

/// Gives one byte at a time, as a pipe may.
struct Drip(io::Cursor<Vec<u8>>);

impl Read for Drip {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let end = buf.len().min(1);
        self.0.read(&mut buf[..end])
    }
}

#[test]
fn a_stream_is_unpacked_if_it_is_gzip() {
    let plain = tar_bytes(&[("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"2")]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut packed, &plain).unwrap();
    for bytes in [plain, packed.finish().unwrap()] {
        let input = unpacked(Drip(io::Cursor::new(bytes))).unwrap();
        let mut shard = TarShard::new(input, "-".into(), TarFields::default(), 0);
        let mut keys = Vec::new();
        while let Some(sample) = shard.next_sample(true) {
            keys.push(sample.unwrap().unwrap().key);
        }
        assert_eq!(keys, ["a", "b"]);
    }
    assert!(
        unpacked(Drip(io::Cursor::new(vec![0x1f]))).is_ok(),
        "shorter than the mark"
    );
}

#[test]
fn the_loss_of_a_shard_is_told_whatever_is_wanted_and_whatever_else_is_wrong() {
    let data = tar_bytes(&[("a.jpg", b"1"), ("b.jpg", &[7; 2000]), ("b.png", &[8; 2000])]);
    let cut = &data[..data.len() - 2000]; // in b.png
    let fields = TarFields {
        member_bytes: 10, // so b.jpg is too large besides
        ..TarFields::default()
    };
    for wanted in [true, false] {
        let mut s = shard(cut, fields.clone(), 0);
        let lost: Vec<_> = std::iter::from_fn(|| s.next_sample(wanted))
            .filter_map(Result::err)
            .collect();
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!(lost[0].problem.kind(), "truncated");
    }
    for (bytes, kind) in [(&b""[..], "not_tar"), (&[b'<'; 3000][..], "not_tar")] {
        let mut s = shard(bytes, TarFields::default(), 0);
        let lost = s.next_sample(false).unwrap().unwrap_err();
        assert_eq!((lost.problem.kind(), lost.problem.loses_shard()), (kind, true));
        assert!(s.next_sample(false).is_none());
    }
    // an archive without members is whole
    assert!(
        shard(&tar_bytes(&[]), TarFields::default(), 0)
            .next_sample(true)
            .is_none()
    );
}

proptest! {
    /// Walking with or without reading gives the same borders, and any border is a place to resume from.
    #[test]
    fn borders_do_not_depend_on_reading(
        names in prop::collection::vec("[ab]{1,2}(\\.(jpg|txt|x))?", 1..25),
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..4), cut in any::<u16>(),
        pattern in any::<u32>(),
    ) {
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), b"body" as &[u8])).collect();
        let mut data = tar_bytes(&files);
        for (at, value) in damage {
            let at = usize::from(at) % data.len();
            data[at] = value;
        }
        data.truncate(usize::from(cut).max(1));
        let walk = |offset: u64, wanted: &dyn Fn(usize) -> bool| {
            let mut s = shard(&data, TarFields::default(), offset);
            let mut borders = vec![s.position()];
            while s.next_group(wanted(borders.len())).is_some() {
                borders.push(s.position());
            }
            borders
        };
        let all = walk(0, &|_| true);
        prop_assert_eq!(&walk(0, &|_| false), &all);
        prop_assert_eq!(&walk(0, &|i| pattern >> (i % 32) & 1 == 1), &all);
        for (i, &border) in all.iter().enumerate() {
            let rest = walk(border, &|_| true);
            prop_assert_eq!(rest.last(), all.last(), "resumed at {}", border);
            prop_assert!(rest.len() <= all.len() - i, "resumed at {}", border);
        }
    }
}

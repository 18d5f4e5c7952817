use super::*;

fn map(lists: &[&[usize]]) -> CaptionMap {
    CaptionMap::new(lists.iter().map(|l| l.to_vec()).collect()).unwrap()
}

#[test]
fn several_captions_of_one_image() {
    let map = map(&[&[0, 1], &[2]]);
    let i2t = ScoreTable::new(2, 3, vec![0.1, 0.9, 0.5, 0.3, 0.2, 0.1]).unwrap();
    let t2i = i2t.transposed();
    assert_eq!(t2i.row(1), [0.9, 0.2]);
    let scores = score(&i2t, &t2i, &map).unwrap();
    // image 0: its caption 1 is best; image 1: both foreign captions are above its own
    assert_eq!(scores.text, [50.0, 100.0, 100.0]);
    // captions 0 and 2 find the other image first
    let third = 100.0 / 3.0;
    assert_eq!(scores.image, [third, 100.0, 100.0]);
    assert_eq!(scores.text_mean, 250.0 / 3.0);
    assert_eq!(scores.mean, (scores.text_mean + scores.image_mean) / 2.0);
}

#[test]
fn equal_captions_match_all_their_images() {
    let texts = ["cat", "dog", "cat", "cow"].map(str::to_owned);
    let plain = map(&[&[0, 1], &[2], &[3]]);
    let shared = plain.clone().shared(&texts);
    assert_eq!(
        (plain.captions_of(0), plain.images_of(2)),
        (&[0, 1][..], &[1][..])
    );
    assert_eq!(shared.captions_of(0), [0, 1, 2]);
    assert_eq!(shared.captions_of(1), [0, 2]);
    assert_eq!(
        (shared.images_of(0), shared.images_of(2)),
        (&[0, 1][..], &[0, 1][..])
    );
    assert_eq!((shared.images_of(1), shared.images_of(3)), (&[0][..], &[2][..]));
    // image 1 finds image 0's "cat" first
    let i2t = ScoreTable::new(
        3,
        4,
        vec![0.0, 0.0, 0.0, 0.0, 0.9, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.5],
    )
    .unwrap();
    let text = |map: &CaptionMap| score(&i2t, &i2t.transposed(), map).unwrap().text[0];
    assert!((text(&plain) - 100.0 / 3.0).abs() < 1e-9 && (text(&shared) - 200.0 / 3.0).abs() < 1e-9);
}

#[test]
fn re_ranking_leaves_all_but_the_best_at_the_bottom() {
    let sims = ScoreTable::new(1, 4, vec![0.4, 0.1, 0.3, 0.2]).unwrap();
    assert_eq!(sims.best(0, 2), [0, 2]);
    let table = sims.reranked(2, |_, column| if column == 2 { 5.0 } else { -1.0 });
    assert_eq!(table.row(0), [-1.0 + 0.4, NOT_RANKED, 5.0 + 0.3, NOT_RANKED]);
    assert_eq!(rank_of_best(table.row(0), &[2]), 0);
    assert_eq!(
        sims.reranked(9, |_, _| 0.0).row(0),
        sims.row(0),
        "more than there are: all of them"
    );
}

#[test]
fn of_equal_scores_the_later_ranks_first() {
    assert_eq!(rank_of_best(&[1.0, 1.0, 1.0], &[0]), 2);
    assert_eq!(rank_of_best(&[1.0, 1.0, 1.0], &[2]), 0);
    assert_eq!(rank_of_best(&[1.0, 2.0, 1.0], &[0, 2]), 1, "the best of both");
    assert_eq!(best(&[1.0, 1.0, 1.0], 2), [0, 1]);
}

#[test]
fn shares_cover_every_row_once() {
    for rows in [0, 1, 7, 8, 9, 5000] {
        for processes in [1, 2, 3, 8, 16] {
            let all: Vec<usize> = (0..processes)
                .flat_map(|rank| share(rows, rank, processes))
                .collect();
            assert_eq!(
                all,
                (0..rows).collect::<Vec<_>>(),
                "{rows} rows, {processes} processes"
            );
        }
    }
    assert_eq!(share(5000, 0, 8), 0..626, "floor(5000 / 8) + 1");
}

#[test]
fn faulty_maps_and_tables() {
    let new = |lists: &[&[usize]]| {
        CaptionMap::new(lists.iter().map(|l| l.to_vec()).collect())
            .unwrap_err()
            .to_string()
    };
    assert!(new(&[]).contains("empty"));
    assert!(new(&[&[0], &[]]).contains("item 1"));
    assert!(new(&[&[0], &[2]]).contains("outside"));
    assert!(new(&[&[0, 1], &[1]]).contains("another image"));
    assert!(ScoreTable::new(2, 2, vec![0.0; 3]).is_err());
    let map = map(&[&[0], &[1]]);
    let square = |value| ScoreTable::new(2, 2, vec![0.0, 1.0, value, 0.0]).unwrap();
    assert!(
        score(&square(f32::NAN), &square(0.0), &map)
            .unwrap_err()
            .to_string()
            .contains("row 1, column 0")
    );
    let tall = ScoreTable::new(4, 1, vec![0.0; 4]).unwrap();
    assert!(
        score(&tall, &square(0.0), &map)
            .unwrap_err()
            .to_string()
            .contains("4 x 1")
    );
}

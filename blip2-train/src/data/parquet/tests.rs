use super::*;
use bytes::Bytes;
use proptest::prelude::*;

const PAIRS: &[u8] = include_bytes!("../../../../tests/fixtures/parquet/pairs.parquet");
const VQA: &[u8] = include_bytes!("../../../../tests/fixtures/parquet/vqa.parquet");
const VQA_ZSTD: &[u8] = include_bytes!("../../../../tests/fixtures/parquet/vqa-zstd.parquet");

fn open(bytes: &[u8], row: u64) -> Result<ParquetShard, DataError> {
    ParquetShard::from_reader(
        Bytes::copy_from_slice(bytes),
        Path::new("x.parquet"),
        &ParquetFields::default(),
        row,
    )
}

fn all(mut shard: ParquetShard) -> Vec<Result<Option<Sample>, &'static str>> {
    std::iter::from_fn(|| shard.next_sample(true))
        .map(|r| r.map_err(|s| s.problem.kind()))
        .collect()
}

fn all_problems(mut shard: ParquetShard) -> Vec<String> {
    std::iter::from_fn(|| shard.next_sample(true))
        .filter_map(|r| r.err().map(|s| s.problem.to_string()))
        .collect()
}

#[test]
fn hugging_face_image_columns_and_caption_lists() {
    let rows = all(open(PAIRS, 0).unwrap());
    assert_eq!(rows.len(), 100);
    for (i, row) in rows.iter().enumerate() {
        match (i, row) {
            (13, Err(kind)) => assert_eq!(*kind, "missing_image"),
            (i, Ok(Some(s))) => {
                let captions: Vec<String> = (0..i % 4).map(|k| format!("caption {k} of {i}")).collect();
                assert_eq!((&s.captions, s.key.as_str()), (&captions, i.to_string().as_str()));
                let body: Vec<u8> = (0..50).map(|k| (i * 7 + k) as u8).collect();
                assert_eq!(s.image, ImageSource::Bytes(body));
                assert_eq!(s.image_id.as_deref(), Some((1000 + i).to_string().as_str()));
            }
            other => panic!("{other:?}"),
        }
    }
    for start in [0, 1, 31, 32, 33, 40, 99, 100, 1000] {
        let rest = all(open(PAIRS, start).unwrap());
        assert_eq!(rest, rows[(start as usize).min(100)..], "from row {start}");
    }
}

#[test]
fn vqa_columns() {
    let rows = all(open(VQA, 0).unwrap());
    let q = rows[0]
        .as_ref()
        .unwrap()
        .as_ref()
        .unwrap()
        .question
        .clone()
        .unwrap();
    assert_eq!((q.text.as_str(), q.id.as_deref()), ("what is 0?", Some("500")));
    assert_eq!(
        (q.answers[0].text.as_str(), q.answers[0].count, q.answers.len()),
        ("yes", 2, 2)
    );
}

#[test]
fn compression_that_is_not_built_in_is_named() {
    let rows = all_problems(open(VQA_ZSTD, 0).unwrap());
    if cfg!(feature = "parquet-zstd") {
        assert!(rows.is_empty(), "{rows:?}");
    } else {
        assert_eq!(rows.len(), 1, "the file ends there: {rows:?}");
        assert!(rows[0].contains("zstd"), "{}", rows[0]);
    }
}

#[test]
fn a_file_without_pictures_names_its_columns() {
    let fields = ParquetFields {
        image: vec!["photo".into()],
        ..ParquetFields::default()
    };
    let shard = ParquetShard::from_reader(Bytes::from_static(PAIRS), Path::new("x"), &fields, 0);
    match shard.err() {
        Some(DataError::MissingColumn { column, found, .. }) => {
            assert_eq!(column, "photo");
            assert!(found.contains(&"image.bytes".to_owned()), "{found:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(open(b"PAR1 no", 0), Err(DataError::Parquet { .. })));
}

proptest! {
    #[test]
    fn damaged_files_never_panic(flips in prop::collection::vec((any::<u16>(), any::<u8>()), 1..12), cut in any::<bool>()) {
        let mut bytes = PAIRS.to_vec();
        let len = bytes.len();
        flips.iter().for_each(|(at, v)| bytes[usize::from(*at) % len] = *v);
        if cut {
            bytes.drain(..usize::from(flips[0].0) % len);
        }
        if let Ok(shard) = open(&bytes, 0) {
            prop_assert!(all(shard).len() <= 1_000_000);
        }
    }
}

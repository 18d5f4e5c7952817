use super::*;
use bytes::Bytes;
use parquet::basic::Compression;
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
    let shard = open(VQA_ZSTD, 0);
    if cfg!(feature = "parquet-zstd") {
        let rows = all_problems(shard.unwrap());
        assert!(rows.is_empty(), "{rows:?}");
        return;
    }
    let error = shard.err().expect("refused when it is opened");
    assert!(error.ends_reading(), "not one shard of many");
    let text = error.to_string();
    assert!(
        text.contains("packed with zstd") && text.contains("--features parquet-zstd"),
        "{text}"
    );
}

/// A file with a row for each question, every third labelled true, `codec` over its pages.
fn written(codec: Compression) -> Vec<u8> {
    use parquet::data_type::{BoolType, ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let columns = ["image", "question", "answer", "answer_type", "question_type"];
    let fields: String = columns
        .iter()
        .map(|name| format!("required binary {name};"))
        .collect();
    let schema = parquet::schema::parser::parse_message_type(&format!(
        "message rows {{ {fields} required boolean label; }}"
    ))
    .unwrap();
    let properties = WriterProperties::builder().set_compression(codec).build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, Arc::new(schema), Arc::new(properties)).unwrap();
    let mut group = file.next_row_group().unwrap();
    for name in columns {
        let values: Vec<ByteArray> = (0..50)
            .map(|i| format!("{name} {i}").into_bytes().into())
            .collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    let labels: Vec<bool> = (0..50).map(|i| i % 3 == 0).collect();
    column
        .typed::<BoolType>()
        .write_batch(&labels, None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

#[test]
fn gzip_pages_types_of_questions_and_labels_are_read() {
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
    ] {
        let rows = all(open(&written(codec), 0).unwrap());
        assert_eq!(rows.len(), 50, "{codec}");
        let labels: Vec<_> = rows
            .iter()
            .map(|row| row.as_ref().unwrap().as_ref().unwrap().label)
            .collect();
        assert_eq!(
            labels,
            (0..50).map(|i| Some(i % 3 == 0)).collect::<Vec<_>>(),
            "{codec}"
        );
        let sample = rows[7].clone().unwrap().unwrap();
        let question = sample.question.unwrap();
        assert_eq!(question.answers[0].text, "answer 7");
        assert_eq!(question.answer_type.as_deref(), Some("answer_type 7"));
        assert_eq!(question.question_type.as_deref(), Some("question_type 7"));
    }
}

#[test]
fn a_damaged_page_loses_the_shard_and_names_the_row() {
    let mut bytes = written(Compression::GZIP(Default::default()));
    bytes[8..200].fill(0xa5);
    let mut shard = match open(&bytes, 0) {
        Ok(shard) => shard,
        Err(error) => panic!("{error}"),
    };
    // also for a process that wants other rows
    let lost = shard.next_sample(false).unwrap().unwrap_err();
    assert!(lost.problem.loses_shard(), "{lost}");
    assert!(lost.to_string().contains("breaks off at row 0"), "{lost}");
    assert!(shard.next_sample(true).is_none());
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

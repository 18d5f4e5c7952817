use super::*;

fn caption(id: i64, text: &str) -> Caption {
    Caption {
        image_id: id.into(),
        caption: text.to_string(),
    }
}

#[test]
fn the_format_is_cocos() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("predictions.json");
    let written = vec![
        caption(42, "a dog"),
        Caption {
            image_id: "x.jpg".into(),
            caption: "é \"q\"".into(),
        },
    ];
    write(&path, &written).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json[0], serde_json::json!({"image_id": 42, "caption": "a dog"}));
    assert_eq!(json[1]["image_id"], "x.jpg");
    assert_eq!(read::<Caption>(&path).unwrap(), written);
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no temporary file stays"
    );
    let error = read::<Answer>(&path).unwrap_err().to_string();
    assert!(
        error.contains("predictions.json") && error.contains("question_id"),
        "{error}"
    );
}

#[test]
fn merging_keeps_the_first_of_two() {
    let (merged, dropped) = merge([
        vec![caption(1, "a"), caption(3, "c")],
        vec![caption(2, "b"), caption(1, "z")],
    ]);
    assert_eq!(merged, [caption(1, "a"), caption(3, "c"), caption(2, "b")]);
    assert_eq!(dropped, 1);
}

#[test]
fn a_journal_goes_on_after_a_torn_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = journal_path(folder.path(), "predictions", 3);
    let (mut journal, before) = Journal::open::<Caption>(&path).unwrap();
    assert!(before.is_empty());
    journal.append(&[caption(1, "a"), caption(2, "b")]).unwrap();
    journal.sync().unwrap();
    let mut torn = std::fs::read(&path).unwrap();
    torn.extend(b"{\"image_id\": 3, \"capt");
    std::fs::write(&path, torn).unwrap();
    let (mut journal, before) = Journal::open::<Caption>(&path).unwrap();
    assert_eq!(before, [caption(1, "a"), caption(2, "b")]);
    assert!(journal.holds(&2.into()) && !journal.holds(&3.into()));
    journal.append(&[caption(3, "c")]).unwrap();
    assert_eq!(Journal::open::<Caption>(&path).unwrap().1.len(), 3);
}

#[test]
fn a_line_damaged_in_the_middle_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("j");
    std::fs::write(
        &path,
        "{\"image_id\": 1}\n{\"image_id\": 1, \"caption\": \"a\"}\n",
    )
    .unwrap();
    assert!(Journal::open::<Caption>(&path).is_err());
}

#[test]
fn hashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    std::fs::write(&path, "abc").unwrap();
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, appendix B.1
    assert_eq!(sha256(b"abc"), known);
    assert_eq!(sha256_file(&path).unwrap(), known);
}

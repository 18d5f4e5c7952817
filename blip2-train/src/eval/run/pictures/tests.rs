use super::*;
use crate::data::testing::{png, tar_bytes};

fn write(dir: &Path, name: &str, body: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, body).unwrap();
    path.to_string_lossy().into_owned()
}

fn open(path: &str, selection: &Selection) -> Pictures {
    Pictures::open(&SourceConfig::new(path), selection, 1).unwrap()
}

/// Two shards whose members are numbered from 0, as most tools write them.
fn question_shards(dir: &Path) -> String {
    for (shard, answers) in [("q-0.tar", ["cat", "dog"]), ("q-1.tar", ["bus", "car"])] {
        let picture = png(8, 8);
        let rows = answers.map(|answer| format!(r#"{{"question":"What is this?","answer":"{answer}"}}"#));
        let files: [(&str, &[u8]); 4] = [
            ("000.png", &picture),
            ("000.json", rows[0].as_bytes()),
            ("001.png", &picture),
            ("001.json", rows[1].as_bytes()),
        ];
        write(dir, shard, &tar_bytes(&files));
    }
    dir.join("q-{0..1}.tar").to_string_lossy().into_owned()
}

#[test]
fn questions_of_several_shards_have_ids_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = open(&question_shards(dir.path()), &Selection::default());
    let ids: Vec<String> = pictures
        .list
        .iter()
        .flat_map(|p| p.questions.iter().map(|asked| asked.id.to_string()))
        .collect();
    assert_eq!(ids, ["q-0.tar:000", "q-0.tar:001", "q-1.tar:000", "q-1.tar:001"]);
    let one = open(
        &dir.path().join("q-0.tar").to_string_lossy(),
        &Selection::default(),
    );
    assert_eq!(one.list[1].questions[0].id, Id::from("001"));
    // files of one name in two folders keep the folders
    let picture = png(8, 8);
    let files: [(&str, &[u8]); 2] = [("000.png", &picture), ("000.json", br#"{"question":"What?"}"#)];
    let a = write(dir.path(), "a/q.tar", &tar_bytes(&files));
    let b = write(dir.path(), "b/q.tar", &tar_bytes(&files));
    let both = open(&format!("{a}::{b}"), &Selection::default());
    assert_eq!(both.list[1].questions[0].id, Id::Text(format!("{b}:000")));
    assert_eq!(both.list[0].id, Id::Text(format!("{a}:000")));
}

#[test]
fn samples_without_text_count_in_the_part_that_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let row = |i: usize| format!("{{\"image\":\"{i}.png\",\"caption\":\"{i}\"}}\n");
    let bad = "{ no JSON\n".to_owned();
    let text = [row(0), bad.clone(), row(1), row(2), bad.clone(), bad].concat();
    let path = write(dir.path(), "rows.jsonl", text.as_bytes());
    let all = open(&path, &Selection::default());
    let numbers = |pictures: &Pictures| pictures.skipped.iter().map(|(n, _)| *n).collect::<Vec<_>>();
    assert_eq!((numbers(&all), all.samples()), (vec![1, 4, 5], 6));
    let limited = open(
        &path,
        &Selection {
            limit: Some(2),
            ..Selection::default()
        },
    );
    assert_eq!((numbers(&limited), limited.samples()), (vec![1], 3));
    let keys = Some(PathBuf::from(write(dir.path(), "keys.txt", b"2\n4\n")));
    let listed = open(
        &path,
        &Selection {
            keys,
            ..Selection::default()
        },
    );
    assert_eq!((numbers(&listed), listed.samples()), (vec![4], 2));
    let none = write(dir.path(), "none.jsonl", b"{ no JSON\n");
    let error = Pictures::open(&SourceConfig::new(none), &Selection::default(), 1).err();
    assert!(
        matches!(error, Some(RunError::AllBad { count: 1, .. })),
        "{error:?}"
    );
}

#[test]
fn a_changed_picture_of_an_annotation_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let rows = "{\"image\":\"a.png\",\"caption\":\"a\"}\n{\"image\":\"b.png\",\"caption\":\"b\"}\n";
    let path = write(dir.path(), "set/rows.jsonl", rows.as_bytes());
    write(dir.path(), "set/a.png", &png(8, 8));
    write(dir.path(), "set/b.png", &png(8, 8));
    let before = open(&path, &Selection::default());
    assert!(before.state_sha256.is_some());
    std::fs::rename(dir.path().join("set"), dir.path().join("moved")).unwrap();
    let moved = dir.path().join("moved/rows.jsonl").to_string_lossy().into_owned();
    let after = open(&moved, &Selection::default());
    assert_eq!(
        (&after.sha256, &after.state_sha256),
        (&before.sha256, &before.state_sha256)
    );
    write(dir.path(), "moved/b.png", &png(9, 8));
    let changed = open(&moved, &Selection::default());
    assert_eq!(changed.sha256, before.sha256);
    assert_ne!(changed.state_sha256, before.state_sha256);
    let first = Selection {
        limit: Some(1),
        ..Selection::default()
    };
    let (a, b) = (open(&moved, &first), {
        write(dir.path(), "moved/b.png", &png(7, 8));
        open(&moved, &first)
    });
    assert_eq!(a.state_sha256, b.state_sha256, "only what is evaluated matters");
}

#[test]
fn answers_for_shards_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = SourceConfig {
        answers: Some("answers.json".into()),
        ..SourceConfig::new(question_shards(dir.path()))
    };
    let error = Pictures::open(&config, &Selection::default(), 1).err().unwrap();
    assert!(
        error.to_string().starts_with("--answers is answers.json"),
        "{error}"
    );
}

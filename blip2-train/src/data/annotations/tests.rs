use super::*;

fn set(name: &str, text: &str, config: impl FnOnce(&mut AnnotationConfig)) -> AnnotationSet {
    let mut c = AnnotationConfig {
        images: Some("root".into()),
        ..AnnotationConfig::new(name)
    };
    config(&mut c);
    AnnotationSet::from_bytes(text.as_bytes(), None, &c).unwrap()
}

fn get(set: &AnnotationSet, i: usize) -> Sample {
    set.sample(i).unwrap().unwrap()
}

#[test]
fn caption_rows_of_both_splits() {
    let train = r#"[{"image":"val2014/COCO_val2014_000000522418.jpg","caption":"A woman.","image_id":"coco_522418"},
        {"image":"b.jpg","caption":"B","image_id":"coco_1"},
        {"image":"val2014/COCO_val2014_000000522418.jpg","caption":"A cake.","image_id":"coco_522418"}]"#;
    let s = set("t.json", train, |c| c.format = "coco_caption".into());
    assert_eq!(s.len(), 3);
    let third = get(&s, 2);
    assert_eq!(
        (third.key.as_str(), third.captions[0].as_str(), third.image_index),
        ("2", "A cake.", Some(0))
    );
    assert_eq!(third.image_id.as_deref(), Some("coco_522418"));
    assert_eq!(
        third.image,
        ImageSource::Path("root/val2014/COCO_val2014_000000522418.jpg".into())
    );
    assert_eq!(
        coco_image_id("val2014/COCO_val2014_000000522418.jpg"),
        Some(522418)
    );

    let eval = r#"[{"image":"a.jpg","caption":["1","2","3","4","5"]},{"image":"b.jpg","caption":["6"]}]"#;
    let s = set("t.json", eval, |c| c.pairs = false);
    let index = s.retrieval_index();
    assert_eq!(index.image_to_texts, [vec![0, 1, 2, 3, 4], vec![5]]);
    assert_eq!(index.text_to_image, [0, 0, 0, 0, 0, 1]);
    let pairs = set("t.json", eval, |_| {});
    assert_eq!(
        (
            pairs.len(),
            get(&pairs, 4).image_index,
            get(&pairs, 5).image_index
        ),
        (6, Some(0), Some(1))
    );
}

#[test]
fn nocaps_and_vqa_rows() {
    let s = set("n.json", r#"[{"image":"x.jpg","img_id":17}]"#, |c| {
        c.format = "nocaps".into()
    });
    assert_eq!(get(&s, 0).image_id.as_deref(), Some("17"));

    let s = set(
        "v.json",
        r#"[{"image":"x.jpg","question":"q?","question_id":5,"answer":["a","b","a","a","a","a","a","a","a","a"]},
            {"image":"x.jpg","question":"q?","question_id":6}]"#,
        |c| c.format = "coco_vqa".into(),
    );
    let q = get(&s, 0).question.unwrap();
    assert_eq!(
        (q.id.as_deref(), q.answers[0].weight, q.answers[1].weight),
        (Some("5"), 0.9, 0.1)
    );
    assert!(get(&s, 1).question.unwrap().answers.is_empty());

    let s = set(
        "a.json",
        r#"[{"image":"x.jpg","question":"q","direct_answers":["a","a","b"],"choices":["a","b","c","d"],"correct_choice_idx":1}]"#,
        |c| c.format = "aok_vqa".into(),
    );
    let q = get(&s, 0).question.unwrap();
    assert_eq!(
        (q.choices.len(), q.correct_choice, q.answers.len()),
        (4, Some(1), 2)
    );

    let s = set(
        "g.json",
        r#"{"201":{"question":"Is it?","imageId":"n16","answer":"no"}}"#,
        |c| c.format = "gqa_official".into(),
    );
    let sample = get(&s, 0);
    assert_eq!(sample.image, ImageSource::Path("root/n16.jpg".into()));
    let q = sample.question.unwrap();
    assert_eq!((q.id.as_deref(), q.answers[0].weight), (Some("201"), 1.0));
}

#[test]
fn published_layouts() {
    let karpathy = r#"{"images":[
        {"filepath":"val2014","filename":"a.jpg","imgid":0,"cocoid":9,"split":"restval","sentences":[{"raw":"one"},{"raw":"two"}]},
        {"filename":"b.jpg","imgid":1,"split":"test","sentences":[{"raw":"three"}]}],"dataset":"coco"}"#;
    let s = set("d.json", karpathy, |c| {
        (c.format, c.split) = ("karpathy".into(), Some("train".into()))
    });
    assert_eq!(
        (s.len(), get(&s, 1).captions[0].as_str(), get(&s, 1).image_id),
        (2, "two", Some("9".into()))
    );
    let s = set("d.json", karpathy, |c| {
        (c.format, c.split) = ("karpathy".into(), Some("test".into()))
    });
    assert_eq!(get(&s, 0).image, ImageSource::Path("root/b.jpg".into()));

    let coco = r#"{"images":[{"id":3,"file_name":"c.jpg"},{"id":4,"file_name":"d.jpg"}],
        "annotations":[{"image_id":4,"id":1,"caption":"x"},{"image_id":4,"id":2,"caption":"y"},{"image_id":8,"id":3,"caption":"z"}]}"#;
    let s = set("c.json", coco, |c| {
        (c.format, c.pairs) = ("coco_official".into(), false)
    });
    assert_eq!((get(&s, 0).captions.len(), get(&s, 1).captions.len()), (0, 2));
    assert_eq!(s.sample(2).unwrap().unwrap_err().problem.kind(), "missing_image");

    let config = AnnotationConfig {
        format: "vqa_official".into(),
        ..AnnotationConfig::new("q.json")
    };
    let questions =
        r#"{"data_subtype":"val2014","questions":[{"image_id":42,"question":"what?","question_id":420}]}"#;
    let notes = r#"{"annotations":[{"question_id":420,"answers":[{"answer":"a"},{"answer":"b"}]}]}"#;
    let s = AnnotationSet::from_bytes(questions.as_bytes(), Some(notes.as_bytes()), &config).unwrap();
    assert_eq!(
        get(&s, 0).image,
        ImageSource::Path("val2014/COCO_val2014_000000000042.jpg".into())
    );
    assert_eq!(get(&s, 0).question.unwrap().answers[1].weight, 0.5);
}

#[test]
fn names_and_problems() {
    assert!(matches!(
        Format::named("coco"),
        Err(DataError::UnknownFormat { .. })
    ));
    let s = set(
        "x.csv",
        "file_name,text,question\na.png,\"[\"\"p\"\",\"\"q\"\"]\",\n,b,c\n",
        |c| c.pairs = false,
    );
    assert_eq!(get(&s, 0).captions, ["p", "q"]);
    assert_eq!(get(&s, 0).question, None);
    assert_eq!(s.sample(1).unwrap().unwrap_err().problem.kind(), "missing_image");
    assert!(s.sample(2).is_none());
    use burn_dataset::Dataset;
    assert!(Dataset::get(&s, 0).is_some() && Dataset::get(&s, 1).is_none());
}

/// Questions as LAVIS lists them, with the official annotations in a file of their own.
#[test]
fn answers_are_joined_by_question_id_whatever_the_layout() {
    let notes = r#"{"annotations":[
        {"question_id":5,"answer_type":"other","question_type":"what is","answers":[{"answer":"a"},{"answer":"b"}]},
        {"question_id":"g6","answers":[{"answer":"c"}]}]}"#;
    let rows = r#"[{"image":"x.jpg","question":"q?","question_id":5},
        {"image":"x.jpg","question":"q?","question_id":"g6","answer":"own"},
        {"image":"x.jpg","question":"q?","question_id":7,"answer":"own"}]"#;
    let open = |rows: &str, format: &str| {
        let config = AnnotationConfig {
            format: format.into(),
            answers: Some("notes.json".into()),
            ..AnnotationConfig::new("q.json")
        };
        AnnotationSet::from_bytes(rows.as_bytes(), Some(notes.as_bytes()), &config)
    };
    for format in ["auto", "coco_vqa"] {
        let s = open(rows, format).unwrap();
        let q = |i| get(&s, i).question.unwrap();
        assert_eq!(
            (q(0).answers[1].text.as_str(), q(0).answers[1].weight),
            ("b", 0.5)
        );
        assert_eq!(q(0).answer_type.as_deref(), Some("other"));
        assert_eq!(q(0).question_type.as_deref(), Some("what is"));
        assert_eq!(q(1).answers[0].text, "c");
        assert_eq!(q(2).answers[0].text, "own");
    }
    let others = r#"[{"image":"x.jpg","question":"q?","question_id":70}]"#;
    let official =
        r#"{"data_subtype":"val2014","questions":[{"image_id":42,"question":"what?","question_id":420}]}"#;
    for (rows, format) in [(others, "coco_vqa"), (official, "vqa_official")] {
        let error = open(rows, format).unwrap_err().to_string();
        assert!(
            error.contains("notes.json") && error.contains("none of the questions"),
            "{error}"
        );
    }
}

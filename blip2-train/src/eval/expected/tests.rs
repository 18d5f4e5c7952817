use super::*;

#[test]
fn figures_are_in_points_and_named_once() {
    for row in TABLE {
        for (at, (metric, value)) in row.figures.iter().enumerate() {
            assert!((10.0..150.0).contains(value), "{} {metric}", row.recipe);
            assert!(
                row.figures[..at].iter().all(|(other, _)| other != metric),
                "{} {metric}",
                row.recipe
            );
        }
    }
    let key = |row: &Expected| (row.recipe, row.source.to_string(), row.data);
    let mut keys: Vec<_> = TABLE.iter().map(key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(
        keys.len(),
        TABLE.len(),
        "one row for each recipe, source and data set"
    );
}

#[test]
fn the_released_checkpoints_record_comes_first() {
    let figure = |recipe, metric| super::figure(recipe, metric, 5000);
    assert_eq!(
        figure("caption_coco_opt2.7b", "CIDEr"),
        Some((146.1, Source::Lavis))
    );
    assert_eq!(
        figure("caption_coco_flant5xl", "CIDEr"),
        Some((144.5, Source::Paper))
    );
    assert_eq!(figure("caption_coco_flant5xl", "METEOR"), None);
}

/// A run of so many items on a whole data set.
fn run(items: usize, scores: &[(&str, f64)]) -> Report {
    let score = |(metric, value): &(&str, f64)| Score {
        metric: (*metric).to_owned(),
        value: *value,
        published: None,
    };
    Report {
        task: "vqa".into(),
        recipe: String::new(),
        version: "1".into(),
        config_sha256: String::new(),
        model_sha256: String::new(),
        data_sha256: String::new(),
        items,
        processes: 1,
        wall_seconds: 1.0,
        skipped: 0,
        config: serde_json::json!({"select": {"keys": null, "limit": null, "on_white": false}}),
        scores: scores.iter().map(score).collect(),
    }
}

#[test]
fn the_table_shows_both_and_their_difference() {
    let mut measured = run(214_354, &[("overall", 63.0), ("own", 7.0)]);
    annotate("vqav2_zeroshot_flant5xl", 214_354, &mut measured.scores);
    assert_eq!(measured.scores[0].published, Some(63.13));
    let text = table("vqav2_zeroshot_flant5xl", Some(&measured));
    assert!(
        text.contains("-0.13") && text.contains("-0.10") && text.contains("yes/no"),
        "{text}"
    );
    let own = text.lines().find(|line| line.starts_with("own")).unwrap();
    assert_eq!(
        own.split_whitespace().collect::<Vec<_>>(),
        ["own", "-", "7.00", "-", "-"]
    );
    assert!(!text.contains("note:"), "{text}");
    assert!(table("nonesuch", None).contains("ret_coco"));
}

#[test]
fn a_run_on_another_set_or_a_part_is_named_in_the_table() {
    let mut measured = run(10, &[("TR@1", 50.0)]);
    measured.config["select"]["limit"] = 10.into();
    measured.config["shared"] = true.into();
    let text = table("ret_coco", Some(&measured));
    assert!(
        text.contains("note: this run has 10 items, COCO 5K test has 5000"),
        "{text}"
    );
    assert!(
        text.contains("(--limit)") && text.contains("(--shared-captions)"),
        "{text}"
    );
    assert!(notes("ret_coco", &run(5000, &[])).is_empty());
}

#[test]
fn every_recipe_of_this_project_with_published_scores_is_known() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/recipes");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // stage 1 is measured after retrieval_coco, under that name
        if path.extension().is_some_and(|e| e == "toml") && !name.starts_with("pretrain_stage1") {
            assert!(of_recipe(&name).next().is_some(), "{name}");
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen}");
    for (name, rows) in table::SAME {
        assert!(
            TABLE.iter().all(|row| row.recipe != *name),
            "{name} is a row itself"
        );
        for row in *rows {
            assert!(TABLE.iter().any(|known| known.recipe == *row), "{name}: {row}");
        }
    }
    assert_eq!(
        figure("retrieval_coco", "TR@1", 5000),
        Some((85.4, Source::Paper))
    );
}

#[test]
fn the_number_of_items_tells_data_sets_apart() {
    let of = |recipe, items| figure(recipe, "overall", items).map(|(value, _)| value);
    assert_eq!(of("vqav2_opt2.7b", 107_394), Some(81.59));
    assert_eq!(of("vqav2_zeroshot_opt2.7b", 107_394), Some(52.3));
    assert_eq!(of("vqav2_zeroshot_opt2.7b", 214_354), Some(51.88));
    assert_eq!(of("vqav2_zeroshot_opt2.7b", 7), Some(51.88), "its first set");
    assert_eq!(of("pretrain_stage2_flant5xl", 12_578), Some(43.98));
    assert_eq!(of("pretrain_stage2_flant5xl", 5_046), Some(41.22));
    assert_eq!(of("pretrain_stage2_flant5xl", 7), None, "it has three tasks");
}

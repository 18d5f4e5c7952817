//! The examination of a device that is in order. That a device out of order fails is tested where the checks are:
//! none is at hand here.

use crate::{blip2, objects, path, stderr, stdout};

#[test]
fn a_sound_device_is_told_so() {
    let model = path("parity/opt");
    let lines = objects(blip2(&["doctor", "--json", "--model", &model]));
    let (verdict, checks) = lines.split_last().expect("a verdict");
    assert_eq!(verdict["trusted"], true, "{verdict}");
    assert_eq!(verdict["backend"], "flex");
    let names: Vec<&str> = checks.iter().filter_map(|c| c["name"].as_str()).collect();
    for what in [
        "layer norm",
        "attention",
        "softmax",
        "GELU",
        "50,304",
        "bf16",
        "cached steps",
    ] {
        assert!(names.iter().any(|name| name.contains(what)), "{what}: {names:?}");
    }
    for check in checks {
        assert_eq!(check["outcome"], "passed", "{check}");
        assert!(
            check["error"].as_f64() <= check["bound"].as_f64(),
            "{check} says passed"
        );
    }
    let text = stdout(blip2(&["doctor"]));
    assert!(text.contains("may be trusted"), "{text}");
    let out = blip2(&["doctor", "--model", "./nothing"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("nothing"));
}

//! The result page: one HTML file with the scores beside the published figures and the best and worst cases with their
//! pictures. Nothing is loaded from elsewhere, so it can be mailed or kept with the run.

use std::fmt::Write;

use super::expected;
use super::results::Report;
use super::run::folder::SkippedSample;

/// One item on the page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// Image or question id.
    pub id: String,
    /// Picture as PNG bytes; a thumbnail, as all of them go into the file. Empty if there is none.
    pub thumbnail_png: Vec<u8>,
    /// The question, for VQA.
    pub question: Option<String>,
    /// What the model said.
    pub prediction: String,
    /// What people said.
    pub references: Vec<String>,
    /// Score that the cases are sorted by.
    pub score: f64,
}

/// The best and the worst cases, by score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extremes {
    /// Best first.
    pub best: Vec<usize>,
    /// Worst first.
    pub worst: Vec<usize>,
}

/// Picks up to `n` items from either end of the scores; of equal scores the earlier item comes first, and no item is
/// both. Scores that are not numbers are left out.
pub fn extremes(scores: &[f64], n: usize) -> Extremes {
    let mut order: Vec<usize> = (0..scores.len()).filter(|i| !scores[*i].is_nan()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let n_best = n.min(order.len());
    let best = order[..n_best].to_vec();
    let mut rest = order.split_off(n_best);
    rest.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    rest.truncate(n);
    Extremes { best, worst: rest }
}

/// Samples that are left out and named on the page; `skipped.N.jsonl` has all.
const BAD_NAMED: usize = 200;

/// The page's HTML; `bad` are the samples that are left out.
pub fn html(report: &Report, bad: &[SkippedSample], best: &[Case], worst: &[Case]) -> String {
    let mut out = String::new();
    let title = escape(&format!("{}: {}", report.task, report.recipe));
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n"
    );
    let _ = write!(out, "<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n");
    score_table(&mut out, report);
    facts(&mut out, report);
    left_out(&mut out, bad);
    cases(&mut out, "Worst cases", worst);
    cases(&mut out, "Best cases", best);
    out.push_str("</body>\n</html>\n");
    out
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222;\
background:#fff}table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}\
th:first-child,td:first-child,td:last-child,th:last-child{text-align:left}dl{display:grid;grid-template-columns:max-content 1fr;\
gap:.1rem 1rem;font-size:.9em}dd{margin:0;overflow-wrap:anywhere;font-family:monospace}\
.cases{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1rem}\
.case{border:1px solid #ddd;border-radius:6px;padding:.8rem}.case img{max-width:100%;display:block;margin:0 auto .5rem}\
.case ul{margin:.3rem 0 0;padding-left:1.2rem;color:#666}.said{font-weight:600}.id{color:#666;font-size:.85em;float:right}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}th,td,.case{border-color:#444}.case ul,.id{color:#999}}";

fn score_table(out: &mut String, report: &Report) {
    out.push_str("<table>\n<tr><th>metric</th><th>measured</th><th>published</th><th>difference</th><th>source</th></tr>\n");
    for score in &report.scores {
        let published = score.published;
        let number = |value: Option<f64>| value.map_or("–".to_string(), |v| format!("{v:.2}"));
        let difference = published.map_or("–".to_string(), |p| format!("{:+.2}", score.value - p));
        // the source is known where the published figure came from the table of this program
        let known = expected::figure(&report.recipe, &score.metric, report.items)
            .filter(|(value, _)| Some(*value) == published);
        let source = known.map_or(String::new(), |(_, source)| source.to_string());
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{:.2}</td><td>{}</td><td>{difference}</td><td>{source}</td></tr>",
            escape(&score.metric),
            score.value,
            number(published),
        );
    }
    out.push_str("</table>\n");
    for note in expected::notes(&report.recipe, report) {
        let _ = writeln!(out, "<p>Note: {}</p>", escape(&note));
    }
}

fn left_out(out: &mut String, bad: &[SkippedSample]) {
    if bad.is_empty() {
        return;
    }
    out.push_str("<h2>Left out</h2>\n<table>\n<tr><th>file</th><th>key</th><th>why</th></tr>\n");
    for sample in bad.iter().take(BAD_NAMED) {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&sample.shard),
            escape(&sample.key),
            escape(&sample.problem)
        );
    }
    out.push_str("</table>\n");
    if bad.len() > BAD_NAMED {
        let more = bad.len() - BAD_NAMED;
        let _ = writeln!(out, "<p>and {more} more; all are in skipped.N.jsonl</p>");
    }
}

fn facts(out: &mut String, report: &Report) {
    out.push_str("<h2>Run</h2>\n<dl>\n");
    let rows = [
        ("items", report.items.to_string()),
        ("skipped", report.skipped.to_string()),
        ("processes", report.processes.to_string()),
        ("wall time", format!("{:.1} s", report.wall_seconds)),
        ("version", report.version.clone()),
        ("config", report.config_sha256.clone()),
        ("model", report.model_sha256.clone()),
        ("data", report.data_sha256.clone()),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out.push_str("</dl>\n");
}

fn cases(out: &mut String, heading: &str, cases: &[Case]) {
    if cases.is_empty() {
        return;
    }
    let _ = write!(out, "<h2>{heading}</h2>\n<div class=\"cases\">\n");
    for case in cases {
        let _ = write!(
            out,
            "<div class=\"case\"><span class=\"id\">{} · {:.3}</span>",
            escape(&case.id),
            case.score
        );
        if !case.thumbnail_png.is_empty() {
            let picture = base64(&case.thumbnail_png);
            let _ = write!(
                out,
                "<img alt=\"{}\" src=\"data:image/png;base64,{picture}\">",
                escape(&case.id)
            );
        }
        if let Some(question) = &case.question {
            let _ = write!(out, "<div>{}</div>", escape(question));
        }
        let _ = write!(out, "<div class=\"said\">{}</div><ul>", escape(&case.prediction));
        for reference in &case.references {
            let _ = write!(out, "<li>{}</li>", escape(reference));
        }
        out.push_str("</ul></div>\n");
    }
    out.push_str("</div>\n");
}

/// Text for HTML content and double-quoted attributes; control characters that HTML forbids become `U+FFFD`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// RFC 4648 base64 with padding; twenty lines that save a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            if place <= group.len() {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::Score;

    fn report() -> Report {
        let score = |metric: &str, value, published| Score {
            metric: metric.into(),
            value,
            published,
        };
        Report {
            task: "caption".into(),
            recipe: "caption_coco_opt2.7b".into(),
            version: "0.1.0".into(),
            config_sha256: "c0".into(),
            model_sha256: "<m>".into(),
            data_sha256: "d0".into(),
            items: 5000,
            processes: 2,
            wall_seconds: 12.34,
            skipped: 0,
            config: serde_json::Value::Null,
            scores: vec![
                score("CIDEr", 140.0, Some(146.1)),
                score("CIDEr-plain", 120.0, None),
            ],
        }
    }

    fn bad(text: &str) -> SkippedSample {
        SkippedSample {
            image_id: text.into(),
            shard: text.to_owned(),
            key: text.to_owned(),
            problem: text.to_owned(),
            text: true,
        }
    }

    #[test]
    fn samples_that_are_left_out_are_named_up_to_a_limit() {
        let some = vec![bad("a.tar"); BAD_NAMED + 3];
        let page = html(&report(), &some, &[], &[]);
        assert_eq!(page.matches("<td>a.tar</td>").count(), 3 * BAD_NAMED);
        assert!(page.contains("and 3 more"));
        assert!(!html(&report(), &[], &[], &[]).contains("Left out"));
    }

    #[test]
    fn base64_of_rfc_4648() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, expected) in vectors {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn everything_from_outside_is_escaped() {
        let evil = "<script>\"x\" & 'y'\u{0}";
        let case = Case {
            id: evil.into(),
            thumbnail_png: vec![1, 2, 3],
            question: Some(evil.into()),
            prediction: evil.into(),
            references: vec![evil.into()],
            score: 0.5,
        };
        let page = html(&report(), &[bad(evil)], std::slice::from_ref(&case), &[]);
        assert!(!page.contains("<script") && !page.contains("<m>"));
        assert_eq!(
            page.matches("&lt;script&gt;&quot;x&quot; &amp; &#39;y&#39;\u{fffd}")
                .count(),
            8
        );
        assert!(page.contains("data:image/png;base64,AQID"));
    }

    #[test]
    fn figures_stand_beside_each_other() {
        let page = html(&report(), &[], &[], &[]);
        assert!(
            page.contains("<td>140.00</td><td>146.10</td><td>-6.10</td><td>LAVIS</td>"),
            "{page}"
        );
        assert!(
            page.contains("<td>120.00</td><td>–</td><td>–</td><td></td>"),
            "{page}"
        );
        assert!(
            !page.contains("Best cases") && !page.contains("http"),
            "no empty part, nothing loaded"
        );
    }

    #[test]
    fn best_and_worst_do_not_overlap() {
        let scores = [0.5, 0.9, f64::NAN, 0.1, 0.9];
        assert_eq!(
            extremes(&scores, 2),
            Extremes {
                best: vec![1, 4],
                worst: vec![3, 0]
            }
        );
        assert_eq!(
            extremes(&scores, 3),
            Extremes {
                best: vec![1, 4, 0],
                worst: vec![3]
            }
        );
        assert_eq!(extremes(&[], 3), Extremes::default());
    }
}

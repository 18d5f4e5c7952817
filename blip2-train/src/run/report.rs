//! `report.html` of a run: one curve per number in `metrics.jsonl`, and the configuration. One file, no
//! script, nothing loaded from elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::checkpoint::CheckpointStore;
use super::guard::write_atomically;
use super::{RunError, log};

/// Steps and values of one number.
type Series = Vec<(f64, f64)>;

/// Draws the report and returns its path.
pub fn write(run: &Path) -> Result<PathBuf, RunError> {
    let mut series: BTreeMap<(String, String), Series> = BTreeMap::new();
    for row in log::read(run)? {
        let (Some(step), Some(kind)) = (row["step"].as_f64(), row["kind"].as_str()) else {
            continue;
        };
        for (name, value) in &row {
            if let Some(value) = value.as_f64().filter(|_| name != "step") {
                let key = (kind.to_string(), name.clone());
                series.entry(key).or_default().push((step, value));
            }
        }
    }
    let mut page = String::from(HEAD);
    page.push_str(&format!("<h1>{}</h1>\n", escape(&run.display().to_string())));
    page.push_str(&summary(run)?);
    for ((kind, name), points) in &series {
        let last = points.last().map_or(f64::NAN, |point| point.1);
        page.push_str(&format!(
            "<figure><figcaption>{} {} (last: {last:.5})</figcaption>{}</figure>\n",
            escape(kind),
            escape(name),
            plot(points)
        ));
    }
    page.push_str("</body></html>\n");
    let path = run.join("report.html");
    write_atomically(&path, page.as_bytes()).map_err(RunError::io(&path))?;
    Ok(path)
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Training run</title>\
<style>body{font:14px sans-serif;margin:2em;max-width:70em}figure{display:inline-block;margin:0 1em 1em 0}\
pre{background:#f4f4f4;padding:1em;overflow:auto}</style></head><body>\n";

/// State of the newest checkpoint.
fn summary(run: &Path) -> Result<String, RunError> {
    let (found, _) = CheckpointStore::open(run, 1)?.latest()?;
    let Some(found) = found else {
        return Ok("<p>No checkpoint yet.</p>\n".into());
    };
    let state = found.state;
    let best = match state.best {
        Some(best) => format!("; best {:.5} at step {}", best.value, best.step),
        None => String::new(),
    };
    let config = serde_json::to_string_pretty(&state.config).unwrap_or_default();
    Ok(format!(
        "<p>Step {}, {} samples, seed {}{best}.</p><details><summary>Configuration</summary><pre>{}</pre></details>\n",
        state.step,
        state.samples,
        state.seed,
        escape(&config)
    ))
}

/// A curve as SVG text; empty if there is nothing finite to draw.
fn plot(points: &[(f64, f64)]) -> String {
    let finite: Series = points.iter().copied().filter(|p| p.1.is_finite()).collect();
    let mut svg = String::new();
    if draw(&mut svg, &finite).is_none() {
        svg.clear();
    }
    svg
}

fn draw(svg: &mut String, points: &[(f64, f64)]) -> Option<()> {
    let (first, last) = (points.first()?.0, points.last()?.0);
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    // a constant still needs an axis of some height
    let margin = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-12);
    let area = SVGBackend::with_string(svg, (420, 260)).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(first..last.max(first + 1.0), low - margin..high + margin)
        .ok()?;
    chart
        .configure_mesh()
        .x_labels(5)
        .y_labels(5)
        .y_label_formatter(&|y| format!("{y:.3e}"))
        .draw()
        .ok()?;
    let line = LineSeries::new(points.iter().copied(), &BLUE);
    chart.draw_series(line).ok()?;
    area.present().ok()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_curve() {
        let run = tempfile::tempdir().unwrap();
        let mut log = log::MetricsLog::open(run.path(), 0).unwrap();
        for step in 1..=3 {
            let loss = if step == 2 { f64::NAN } else { 1.0 / step as f64 };
            log.write(step, "train", &[("loss".into(), loss), ("a<b".into(), 2.0)])
                .unwrap();
        }
        log.write(3, "validation", &[("CIDEr".into(), 1.4)]).unwrap();
        let page = std::fs::read_to_string(write(run.path()).unwrap()).unwrap();
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("train loss (last: 0.33333)"));
        assert!(page.contains("a&lt;b") && !page.contains("a<b"));
        assert!(page.contains("No checkpoint yet"));
    }
}

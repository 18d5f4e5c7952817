//! Published figures of BLIP-2, to print beside a result.
//!
//! Recipes bear LAVIS's names where LAVIS has one; the paper's other rows are named alike, and this project's recipes are
//! known as well. Figures are in points (CIDEr
//! 145.8, not 1.458). Where paper and LAVIS's recorded figure differ, both are listed.

mod table;

use std::fmt;

use super::results::{Report, Score};
pub use table::TABLE;

/// Where a figure was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The paper's tables (Li et al. 2023, arXiv 2301.12597).
    Paper,
    /// Head of the recipe's YAML file in LAVIS.
    Lavis,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paper => "paper",
            Self::Lavis => "LAVIS",
        })
    }
}

/// Figures of one recipe from one source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Name of the recipe.
    pub recipe: &'static str,
    /// What it is measured on.
    pub data: &'static str,
    /// Where it was published.
    pub source: Source,
    /// Names and values.
    pub figures: &'static [(&'static str, f64)],
}

impl Expected {
    fn value(&self, metric: &str) -> Option<f64> {
        let found = self.figures.iter().find(|(name, _)| *name == metric);
        found.map(|(_, value)| *value)
    }

    /// Pictures or questions of its data set, where that is known.
    fn items(&self) -> Option<usize> {
        table::items_of(self.data)
    }
}

/// Figures of a recipe, LAVIS's or this project's; of each data set the paper's first.
pub fn of_recipe(recipe: &str) -> impl Iterator<Item = &'static Expected> + '_ {
    let same = table::SAME.iter().find(|(name, _)| *name == recipe);
    let is_one = move |name: &str| match same {
        Some((_, names)) => names.contains(&name),
        None => name == recipe,
    };
    TABLE.iter().filter(move |row| is_one(row.recipe))
}

/// Published figure of one metric: on the data set that has as many items as the run, else on the recipe's only or first
/// one; LAVIS's own record where there is one, as it was made with the released checkpoint.
///
/// None where a recipe is measured by several tasks and the number of items does not tell which this is.
pub fn figure(recipe: &str, metric: &str, items: usize) -> Option<(f64, Source)> {
    let rows: Vec<&Expected> = of_recipe(recipe)
        .filter(|row| row.value(metric).is_some())
        .collect();
    let first = rows.first()?;
    let sized = rows.iter().find(|row| row.items() == Some(items));
    let data = match sized {
        Some(row) => row.data,
        None if rows.iter().any(|row| row.recipe != first.recipe) => return None,
        None => first.data,
    };
    let find = |source| {
        let mut rows = rows.iter().filter(|row| row.source == source && row.data == data);
        rows.find_map(|row| Some((row.value(metric)?, source)))
    };
    find(Source::Lavis).or_else(|| find(Source::Paper))
}

/// Puts published figures beside measured ones.
pub fn annotate(recipe: &str, items: usize, scores: &mut [Score]) {
    for score in scores {
        score.published = figure(recipe, &score.metric, items).map(|(value, _)| value);
    }
}

/// One line of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// Name of the metric.
    pub metric: &'a str,
    /// The published figure with its source and data set; none for what only the run measures.
    pub published: Option<(f64, &'static Expected)>,
    /// The measured one.
    pub measured: Option<f64>,
}

/// Every published figure of a recipe with the measured one, then what was measured beyond.
pub fn lines<'a>(recipe: &str, measured: &'a [Score]) -> Vec<Line<'a>> {
    let rows: Vec<&'static Expected> = of_recipe(recipe).collect();
    let figures = rows.iter().flat_map(|&row| {
        row.figures
            .iter()
            .map(move |(metric, value)| (row, *metric, *value))
    });
    let mut lines: Vec<Line<'a>> = figures
        .map(|(row, metric, value)| Line {
            metric,
            published: Some((value, row)),
            measured: measured.iter().find(|s| s.metric == metric).map(|s| s.value),
        })
        .collect();
    let others = measured
        .iter()
        .filter(|score| rows.iter().all(|row| row.value(&score.metric).is_none()));
    lines.extend(others.map(|score| Line {
        metric: &score.metric,
        published: None,
        measured: Some(score.value),
    }));
    lines
}

/// Why figures of a run cannot be compared with the published ones of a recipe as they are.
pub fn notes(recipe: &str, run: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if of_recipe(recipe).next().is_none() {
        return notes;
    }
    let mut sizes: Vec<(&str, usize)> = of_recipe(recipe)
        .filter_map(|row| Some((row.data, row.items()?)))
        .collect();
    sizes.dedup();
    if !sizes.is_empty() && sizes.iter().all(|(_, items)| *items != run.items) {
        let sets: Vec<String> = sizes
            .iter()
            .map(|(data, items)| format!("{data} has {items}"))
            .collect();
        notes.push(format!(
            "this run has {} items, {}: the figures are of different sets",
            run.items,
            sets.join(" and ")
        ));
    }
    for (option, field) in [("--limit", "limit"), ("--keys", "keys")] {
        if run.config["select"]
            .get(field)
            .is_some_and(|value| !value.is_null())
        {
            notes.push(format!("this run has taken a part of its data set ({option})"));
        }
    }
    if run.config["shared"] == true {
        notes.push("equal captions of other pictures counted as right (--shared-captions)".to_owned());
    }
    notes
}

/// Plain-text table of a recipe's published figures with those of a run, for `eval --expected`.
pub fn table(recipe: &str, run: Option<&Report>) -> String {
    if of_recipe(recipe).next().is_none() {
        return unknown(recipe);
    }
    let mut text = vec![format!(
        "{:<12} {:>9} {:>9} {:>7}  {}",
        "metric", "published", "measured", "diff", "source"
    )];
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for line in lines(recipe, run.map_or(&[], |run| &run.scores)) {
        let published = line.published.map(|(value, _)| value);
        let difference = line
            .measured
            .zip(published)
            .map(|(a, b)| format!("{:+.2}", a - b));
        let source = line
            .published
            .map(|(_, row)| format!("{}, {}", row.source, row.data));
        text.push(format!(
            "{:<12} {:>9} {:>9} {:>7}  {}",
            line.metric,
            number(published),
            number(line.measured),
            difference.as_deref().unwrap_or("-"),
            source.as_deref().unwrap_or("-")
        ));
    }
    let notes = run.map(|run| notes(recipe, run)).unwrap_or_default();
    text.extend(notes.into_iter().map(|note| format!("note: {note}")));
    text.join("\n")
}

fn unknown(recipe: &str) -> String {
    let mut lines = vec![format!("no figure was published for `{recipe}`; known recipes:")];
    let mut names: Vec<&str> = TABLE.iter().map(|row| row.recipe).collect();
    names.extend(table::SAME.iter().map(|(name, _)| *name));
    names.dedup();
    lines.extend(names.into_iter().map(|name| format!("  {name}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests;

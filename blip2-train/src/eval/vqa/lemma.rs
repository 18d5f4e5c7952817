//! Base forms of the words of a predicted answer, for OK-VQA, whose human answers are stemmed.
//!
//! LAVIS (`apply_lemmatizer`) replaces every token that spaCy's en_core_web_sm tags as noun or verb by its lemma. spaCy's
//! rule lemmatizer takes the suffix rules of WordNet's Morphy, tries them in order, and keeps the first form that stands in
//! its index of words. The rules are here; the trained tagger, the index and the list of irregular forms are not. In
//! their place: the index is the words of all human answers, a word that stands in it stays, and where the tagger would
//! decide, noun rules come before verb rules.

use std::collections::HashSet;

/// Suffixes and their replacements, in the order in which they are tried: nouns, then verbs.
const RULES: [(&str, &str); 17] = [
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
];

/// The words that a form is looked for among.
#[derive(Clone, Debug, Default)]
pub struct BaseForms {
    index: HashSet<String>,
}

impl BaseForms {
    /// With the words of these texts as index.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let words = texts.into_iter().flat_map(str::split_whitespace);
        Self {
            index: words.map(str::to_lowercase).collect(),
        }
    }

    /// An answer with every word in its base form, joined with blanks.
    pub fn of_answer(&self, answer: &str) -> String {
        let words: Vec<String> = answer.split_whitespace().map(|word| self.of_word(word)).collect();
        words.join(" ")
    }

    /// The word itself if it stands in the index or no form of it does.
    fn of_word(&self, word: &str) -> String {
        let lower = word.to_lowercase();
        if self.index.contains(&lower) {
            return word.to_owned();
        }
        let forms = RULES.iter().filter_map(|(suffix, replacement)| {
            let stem = lower.strip_suffix(suffix)?;
            Some(format!("{stem}{replacement}"))
        });
        forms
            .into_iter()
            .find(|form| self.index.contains(form))
            .unwrap_or_else(|| word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_back_to_forms_that_people_use() {
        let answers = [
            "dog",
            "pony tail",
            "bus",
            "box",
            "berry",
            "fireman",
            "leaf",
            "ride",
            "surf",
            "bake",
            "church",
            "glasses",
            "glass",
        ];
        let forms = BaseForms::of(answers);
        for (word, base) in [
            ("dogs", "dog"),
            ("pony tails", "pony tail"),
            ("buses", "bus"),
            ("boxes", "box"),
            ("berries", "berry"),
            ("firemen", "fireman"),
            ("leaves", "leaf"),
            ("Riding", "ride"),
            ("surfing", "surf"),
            ("baked", "bake"),
            ("churches", "church"),
            // in the index itself
            ("glasses", "glasses"),
            // irregular, and unknown: as they are
            ("ridden", "ridden"),
            ("Cats", "Cats"),
            // no rule doubles or halves a consonant
            ("surffing", "surffing"),
            ("", ""),
        ] {
            assert_eq!(forms.of_answer(word), base, "{word}");
        }
    }
}

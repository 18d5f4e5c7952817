//! The official VQA answer normalisation (VQA evaluation tools of Antol et al. 2015, as LAVIS carries them).

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::eval::ptb::is_blank;

const MARKS: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!',
];

/// The original passes a flag where the number of replacements belongs.
const MOST_PERIODS: usize = 32;

/// A prediction as it is compared: line breaks and tabs to blanks, both steps.
pub fn prediction(answer: &str) -> String {
    let line: String = answer
        .chars()
        .map(|c| if matches!(c, '\n' | '\t') { ' ' } else { c })
        .collect();
    words(&punctuation(line.trim_matches(is_blank)))
}

/// The punctuation step.
///
/// A mark is deleted where the answer holds it beside a blank, or holds a comma between digits anywhere; else it
/// becomes a blank. Then stops go, unless a digit follows.
pub fn punctuation(answer: &str) -> String {
    let characters: Vec<char> = answer.chars().collect();
    let number = characters
        .windows(3)
        .any(|w| is_digit(w[0]) && w[1] == ',' && is_digit(w[2]));
    let beside_blank = |mark: char| {
        characters
            .windows(2)
            .any(|w| (w[0] == mark && w[1] == ' ') || (w[0] == ' ' && w[1] == mark))
    };
    // what is deleted is decided on the original answer, so the order of the marks does not matter
    let deleted = MARKS.map(|mark| number || beside_blank(mark));
    let replaced: Vec<char> = characters
        .into_iter()
        .filter_map(|c| match MARKS.iter().position(|mark| *mark == c) {
            Some(at) => (!deleted[at]).then_some(' '),
            None => Some(c),
        })
        .collect();
    let mut periods = 0;
    let mut out = String::with_capacity(replaced.len());
    for (at, c) in replaced.iter().enumerate() {
        let number_follows = replaced.get(at + 1).is_some_and(|next| is_digit(*next));
        if *c == '.' && !number_follows && periods < MOST_PERIODS {
            periods += 1;
        } else {
            out.push(*c);
        }
    }
    out
}

/// The digit and article step: lower case, number words to digits, articles away, apostrophes restored.
pub fn words(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let mut out: Vec<&str> = Vec::new();
    for word in lower.split(is_blank).filter(|w| !w.is_empty()) {
        let word = match word {
            "none" | "zero" => "0",
            "one" => "1",
            "two" => "2",
            "three" => "3",
            "four" => "4",
            "five" => "5",
            "six" => "6",
            "seven" => "7",
            "eight" => "8",
            "nine" => "9",
            "ten" => "10",
            "a" | "an" | "the" => continue,
            other => other,
        };
        out.push(CONTRACTIONS.get(word).map_or(word, String::as_str));
    }
    out.join(" ")
}

/// A decimal digit of any script, as `\d` in Python.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
        || DIGIT_BLOCKS
            .binary_search_by(|zero| zero.cmp(&(c as u32)))
            .map_or_else(
                |after| after > 0 && c as u32 - DIGIT_BLOCKS[after - 1] < 10,
                |_| true,
            )
}

/// Zeros of the scripts' ten digits.
const DIGIT_BLOCKS: &[u32] = &[
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50,
    0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
];

/// Contractions whose key is the value without its apostrophe.
const SINGLE: &str = "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll \
    how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't \
    should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd \
    there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's \
    where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll \
    you're you've";

/// Contractions reached from each form that lacks one apostrophe.
const DOUBLE: &str = "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've \
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've";

/// Rows of the official table that follow no rule.
const ODD: &[(&str, &str)] = &[
    ("somebody'd", "somebodyd"),
    ("let's", "let's"),
    ("she's", "she's"),
    ("ow's'at", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("'ow'sat", "'ow's'at"),
];

static CONTRACTIONS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let mut table: HashMap<String, String> =
        ODD.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    for value in SINGLE.split_ascii_whitespace() {
        table.insert(value.replace('\'', ""), value.to_string());
    }
    for value in DOUBLE.split_ascii_whitespace() {
        for (at, _) in value.match_indices('\'') {
            table.insert(format!("{}{}", &value[..at], &value[at + 1..]), value.to_string());
        }
    }
    table
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_the_official_behaviour() {
        let cases = [
            ("two dogs", "2 dogs"),
            ("a red, blue", "red blue"),
            ("1,000", "1000"),
            ("t-shirt", "t shirt"),
            ("u.s.a.", "usa"),
            ("Dont know", "don't know"),
            ("3.5", "3.5"),
            ("10:30", "10:30"),
        ];
        for (answer, expected) in cases {
            assert_eq!(prediction(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_table_of_contractions_has_the_official_number_of_rows() {
        assert_eq!(CONTRACTIONS.len(), 120);
    }

    #[test]
    fn at_most_thirty_two_stops_go() {
        assert_eq!(punctuation(&".".repeat(40)).len(), 8);
    }

    #[test]
    fn a_comma_between_digits_deletes_every_mark() {
        assert_eq!(punctuation("1,000 t-shirt"), "1000 tshirt");
    }
}

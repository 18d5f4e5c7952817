//! Caption tokenizer of the COCO metrics: Stanford's `PTBTokenizer` of CoreNLP 3.4.1 with `-preserveLines -lowerCase`,
//! then the list of punctuation that pycocoevalcap 1.2 removes.
//!
//! The published scores depend on this program's habits, odd ones included (`(` stays as `-lrb-`, `!!` stays while `!`
//! goes, a pound sign becomes `#`), so they are kept. It is a longest-match lexer, and so is this one: the table of
//! `rules` runs as one automaton over character classes. Three differences remain:
//!
//! - a caption is one line here; pycocoevalcap loses count of its lines when a caption holds another line break than
//!   `\n` (carriage return, form feed, U+2028), here they separate words;
//! - a tag whose quoted attribute is never closed (`<a b='`) swallows the following captions there;
//! - the direction of quotation marks is not worked out, as all of them are removed.

mod classes;
mod rules;
mod spelling;

use std::sync::LazyLock;

use rayon::prelude::*;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use rules::{Cut, RULES, Spelling};

/// Tokens that pycocoevalcap removes; as tokens are lower case, its bracket entries never match.
const PUNCTUATION: &[&str] = &[
    "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";",
];

/// Context taken from the following caption.
const CONTEXT: usize = 64;

/// Tokenizes one caption: lower-case tokens without punctuation, joined by single blanks.
///
/// A token may hold a no-break space (`1 1/2`); BLEU and CIDEr split there, ROUGE-L does not.
pub fn tokenize(caption: &str) -> String {
    tokenize_before(caption, None)
}

/// Tokenizes captions as pycocoevalcap does, all in one text: whether the stop after an initial at the very end of a
/// caption stays (`vitamin c.`) depends on the first word of the caption that follows.
pub fn tokenize_all<S: AsRef<str> + Sync>(captions: &[S]) -> Vec<String> {
    let next = |i: usize| captions.get(i + 1).map(AsRef::as_ref);
    captions
        .par_iter()
        .enumerate()
        .map(|(i, caption)| tokenize_before(caption.as_ref(), next(i)))
        .collect()
}

/// Whitespace as Python's `str.split` sees it.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

static AUTOMATON: LazyLock<dense::DFA<Vec<u32>>> = LazyLock::new(|| {
    let definitions = rules::definitions();
    let patterns: Vec<String> = RULES
        .iter()
        .map(|(pattern, ..)| expand(pattern, &definitions))
        .collect();
    dense::Builder::new()
        .configure(
            dense::Config::new()
                .match_kind(MatchKind::All)
                .start_kind(StartKind::Anchored),
        )
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .thompson(thompson::Config::new().utf8(false))
        .build_many(&patterns)
        .expect("the table of rules is a constant and compiles")
});

/// Replaces every `{NAME}` until none is left.
fn expand(pattern: &str, definitions: &[(&str, String)]) -> String {
    let mut pattern = pattern.to_string();
    loop {
        let before = pattern.len();
        let mut found = false;
        for (name, text) in definitions {
            let name = format!("{{{name}}}");
            if pattern.contains(&name) {
                pattern = pattern.replace(&name, text);
                found = true;
            }
        }
        debug_assert!(before < 100_000, "a definition uses itself");
        if !found {
            return pattern;
        }
    }
}

fn tokenize_before(caption: &str, next: Option<&str>) -> String {
    let text: Vec<char> = caption.chars().collect();
    let mut classes: Vec<u8> = text.iter().map(|c| classes::class(*c)).collect();
    for class in &mut classes {
        if *class == b'\n' {
            *class = b' ';
        }
    }
    classes.push(b'\n');
    classes.extend(next.unwrap_or_default().chars().take(CONTEXT).map(classes::class));
    classes.extend(b"\n\n"); // the longest context of fixed length is two characters
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let (taken, spelling) = next_token(&classes, at, text.len());
        let mut token = String::new();
        spelling::write(&text[at..at + taken], spelling, &mut token);
        if !token.is_empty() {
            tokens.push(token);
        }
        at += taken;
    }
    // pycocoevalcap strips each line on the right before it splits it
    while let Some(last) = tokens.last_mut() {
        last.truncate(last.trim_end_matches(is_blank).len());
        if !last.is_empty() {
            break;
        }
        tokens.pop();
    }
    tokens.retain(|token| !PUNCTUATION.contains(&token.as_str()));
    tokens.join(" ")
}

/// Length and spelling of the token at `at`; at least one character.
fn next_token(classes: &[u8], at: usize, end: usize) -> (usize, Spelling) {
    let input = Input::new(classes).range(at..).anchored(Anchored::Yes);
    // the automaton has no byte at which it gives up, and a row matches any single character
    let Some(found) = AUTOMATON.try_search_fwd(&input).ok().flatten() else {
        return (1, Spelling::Dropped);
    };
    let (_, cut, spelling) = RULES[found.pattern().as_usize()];
    let matched = &classes[at..found.offset()];
    let length = match cut {
        Cut::All => matched.len(),
        Cut::Less(n) => matched.len() - n,
        Cut::First(n) => n,
        Cut::Stop => position(matched, |c| c == b'.') + 1,
        Cut::Clitic => {
            let host = matched.len()
                - matched
                    .iter()
                    .rev()
                    .take_while(|c| c.is_ascii_alphabetic())
                    .count();
            host - if matched[host - 1] == b';' {
                "&apos;".len()
            } else {
                1
            }
        }
        Cut::Negation => {
            matched.len()
                - 1
                - matched
                    .iter()
                    .rev()
                    .position(|c| matches!(c, b'n' | b'N'))
                    .unwrap_or(0)
        }
    };
    (length.clamp(1, end - at), spelling)
}

fn position(classes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    classes.iter().position(|c| wanted(*c)).unwrap_or(0)
}

//! How a token of the caption tokenizer is written: the treebank's ASCII stand-ins and lower case.

use super::rules::Spelling;

/// Appends the spelling of a token to `out`, lower case; nothing where the token is not written at all.
pub fn write(token: &[char], spelling: Spelling, out: &mut String) {
    match spelling {
        Spelling::Dropped => {}
        Spelling::As(text) => out.push_str(text),
        Spelling::Verbatim => match entity(token) {
            Some(text) => out.push_str(text),
            None => lower(token, out),
        },
        Spelling::Word => lower(&without_soft_hyphens(token), out),
        Spelling::Treebank => treebank(token, out),
    }
}

const SOFT_HYPHEN: char = '\u{ad}';

fn without_soft_hyphens(token: &[char]) -> Vec<char> {
    token.iter().copied().filter(|c| *c != SOFT_HYPHEN).collect()
}

/// The two entities that are replaced only in small letters.
fn entity(token: &[char]) -> Option<&'static str> {
    let is = |text: &str| text.chars().eq(token.iter().copied());
    if is("&apos;") {
        Some("'")
    } else if is("&quot;") {
        Some("''")
    } else {
        None
    }
}

fn treebank(token: &[char], out: &mut String) {
    match token {
        [SOFT_HYPHEN] => out.push('-'),
        ['['] => out.push_str("-lsb-"),
        [']'] => out.push_str("-rsb-"),
        ['{'] => out.push_str("-lcb-"),
        ['}'] => out.push_str("-rcb-"),
        ['-', '-', '-'] | ['-', '-', '-', '-'] => out.push_str("--"),
        plain if plain.iter().all(|c| c.is_ascii_alphanumeric()) => lower(plain, out),
        _ => {
            let mut spelt = Vec::with_capacity(token.len() + 8);
            let mut rest = token;
            while let Some((&c, after)) = rest.split_first() {
                rest = after;
                match c {
                    SOFT_HYPHEN => {}
                    '&' if begins(after, "apos;", char::eq) => {
                        spelt.push('\'');
                        rest = &after[5..];
                    }
                    '&' if begins(after, "amp;", char::eq_ignore_ascii_case) => {
                        spelt.push('&');
                        rest = &after[4..];
                    }
                    c => match stand_in(c) {
                        Some(text) => spelt.extend(text.chars()),
                        None => spelt.push(c),
                    },
                }
            }
            lower(&spelt, out);
        }
    }
}

fn begins(text: &[char], entity: &str, equal: fn(&char, &char) -> bool) -> bool {
    text.len() >= entity.len() && text.iter().zip(entity.chars()).all(|(a, b)| equal(a, &b))
}

fn stand_in(c: char) -> Option<&'static str> {
    Some(match c {
        '(' => "-lrb-",
        ')' => "-rrb-",
        '"' | '\u{94}' | '\u{bb}' | '\u{201d}' => "''",
        '\u{93}' | '\u{ab}' | '\u{201c}' => "``",
        '\u{91}' | '\u{2018}' | '\u{201b}' | '\u{2039}' => "`",
        '\u{92}' | '\u{2019}' | '\u{203a}' => "'",
        '\u{85}' | '\u{2026}' => "...",
        '\u{96}' | '\u{97}' | '\u{2013}'..='\u{2015}' => "--",
        '\u{80}' | '\u{a4}' | '\u{20a0}' | '\u{20ac}' => "$",
        '\u{a2}' => "cents",
        '\u{a3}' => "#", // as the treebank writes pounds
        '\u{bc}' => "1/4",
        '\u{bd}' => "1/2",
        '\u{be}' => "3/4",
        '\u{2153}' => "1/3",
        '\u{2154}' => "2/3",
        _ => return None,
    })
}

/// Lower case as Java's `String.toLowerCase`; blanks inside a token become no-break spaces.
fn lower(token: &[char], out: &mut String) {
    for (at, c) in token.iter().enumerate() {
        match c {
            ' ' => out.push('\u{a0}'),
            'Σ' => out.push(if ends_word(token, at) { 'ς' } else { 'σ' }),
            c if c.is_ascii() => out.push(c.to_ascii_lowercase()),
            c => out.extend(c.to_lowercase()),
        }
    }
}

/// Whether the sigma at `at` is a final one: a cased letter before it in its word and none after it.
fn ends_word(token: &[char], at: usize) -> bool {
    let cased = |at: &usize| {
        let c = token[*at];
        c.is_lowercase() || c.is_uppercase() || !c.to_lowercase().eq([c])
    };
    let inside = |at: &usize| {
        let letter = |at: usize| token.get(at).is_some_and(|c| c.is_alphabetic());
        match token[*at] {
            '\u{3041}'..='\u{30ff}' | '\u{4e00}'..='\u{9fff}' => false, // each of these is a word
            '\'' | '.' | '_' | '’' | SOFT_HYPHEN | '\u{300}'..='\u{36f}' => true,
            '-' | '\u{2010}' | '\u{2011}' => *at > 0 && letter(at - 1) && letter(at + 1),
            c => c.is_alphanumeric(),
        }
    };
    (0..at).rev().take_while(inside).any(|i| cased(&i))
        && !(at + 1..token.len()).take_while(inside).any(|i| cased(&i))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(token: &str, spelling: Spelling) -> String {
        let mut out = String::new();
        write(&token.chars().collect::<Vec<_>>(), spelling, &mut out);
        out
    }

    #[test]
    fn stand_ins_and_lower_case() {
        let cases = [
            ("½", "1/2"),
            ("€", "$"),
            ("(", "-lrb-"),
            (":)", ":-rrb-"),
            ("1 1/2", "1\u{a0}1/2"),
            ("A\u{ad}B", "ab"),
        ];
        for (token, expected) in cases {
            assert_eq!(written(token, Spelling::Treebank), expected);
        }
        assert_eq!(written("R&AMP;D", Spelling::Treebank), "r&d");
        assert_eq!(written("Hawai’I", Spelling::Verbatim), "hawai’i");
        assert_eq!(written("&apos;", Spelling::Verbatim), "'");
        assert_eq!(written("&APOS;", Spelling::Verbatim), "&apos;");
    }

    #[test]
    fn sigma_at_the_end_of_a_word() {
        for (token, expected) in [
            ("ΟΔΟΣ", "οδος"),
            ("ΣΑΣ", "σας"),
            ("Σ", "σ"),
            ("ΣΑΣΑ", "σασα"),
            ("ΑΣ-Α", "ασ-α"),
        ] {
            assert_eq!(written(token, Spelling::Word), expected);
        }
    }
}

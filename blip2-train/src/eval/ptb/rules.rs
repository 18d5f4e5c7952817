//! Rules of the caption tokenizer: one row per kind of token. Of all rows that match at a position the longest match
//! wins, context included, and among equals the first row.
//!
//! Rows are regular expressions over the classes of [`super::classes`], one byte per character; `{NAME}` stands for a
//! class or for one of the [`definitions`]. Letters in a group `(?i:..)` match in any case, letters in brackets as they
//! are written: the reference program makes the same difference (`Mass.` is a state, `mass.` ends a sentence).

use super::classes;

/// How much of a match is the token; the rest is context and is read again.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All of it.
    All,
    /// All but the last `n` characters.
    Less(usize),
    /// The first `n` characters.
    First(usize),
    /// Up to the first full stop.
    Stop,
    /// Up to the clitic (`'s`, `'ll`).
    Clitic,
    /// Up to the `n` of a negation.
    Negation,
}

/// How the token is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spelling {
    /// In the treebank's ASCII: brackets, quotation marks, dashes, currencies, entities.
    Treebank,
    /// Without soft hyphens, otherwise as it stands.
    Word,
    /// As it stands.
    Verbatim,
    /// As this text.
    As(&'static str),
    /// Not at all.
    Dropped,
}

use Cut::*;
use Spelling::*;

/// A row: pattern, part of the match that is the token, spelling.
pub type Rule = (&'static str, Cut, Spelling);

/// All rows, the more particular ones first.
pub const RULES: &[Rule] = &[
    // words and what hangs on them
    (r"{WORD}{CLITIC}", Clitic, Treebank),
    (r"(?i:cannot|gonna|gotta|lemme|gimme|wanna)", First(3), Treebank),
    (r"'(?i:tis|twas)", First(2), Treebank),
    (r"{CLITIC}[^A-Za-z]", Less(1), Treebank), // 's, but not the quotation mark of 'some'
    (
        r"(?:{APOSTROPHE}|(?i:&apos;))(?:[dmsDMS]|(?i:ll|re|ve))",
        All,
        Treebank,
    ),
    (r"[A-Za-z]\.{GAP}+{STARTER}{GAP}", First(1), Treebank), // plan B. The
    (r"[A-Za-z]\.{GAP}+{TAG}{GAP}", First(1), Treebank),
    (r"{APOS}[nN]{GAP}", Less(1), Verbatim),
    (r"(?:{APOSTROPHE}|(?i:&apos;))[nN]", All, Verbatim),
    (r"(?:\.[ {NBSP}]){2,4}\.", All, As("...")),
    (
        r"{APOS}[nN]{APOS}|{APOS}[2-9]0[sS]|{APOS}(?i:cause|em|till?)|[dDjJlL]{APOS}|(?i:dunkin|ol|somethin){APOS}",
        All,
        Verbatim,
    ),
    (
        r"(?i:o){TICK}(?i:o)|(?i:c'mon|cont'd\.?|e'er|ev'ry|li'l|nat'l|nor'easter|s'mores)",
        All,
        Verbatim,
    ),
    (r"(?i:y){APOS}{SPELT}", Less(1), Verbatim), // y'all
    (r"(?i:c\+\+|c#|f#)|(?:\\\*)+", All, Treebank),
    (
        r"[A-Za-z{SOFT}]*[A-MO-Za-mo-z]{SOFT}*[nN]{TICK}[tT]",
        Negation,
        Treebank,
    ), // don't
    (r"[nN]{TICK}[tT]", All, Treebank),
    (r"{INITIALS}", All, Treebank),
    (
        r"(?:{WORD}|{COMPOUND}|{HYPHENATED}|{INITIALS})\.[,:;{COMMA}]",
        Less(1),
        Word,
    ), // a stop before a comma belongs to the word
    (
        r"[A-Za-z{LETTER}]+[AEIOUYaeiouy]{TICK}[aeiouA-Z][A-Za-z{LETTER}]*",
        All,
        Verbatim,
    ), // Hawai'i
    (r"[A-HJ-XZn]{TICK}[A-Za-z{LETTER}]{2,}", All, Verbatim), // O'Brien
    (r"{APOS}[0-9]{2}{GAP}", Less(1), Verbatim),
    (
        r"[A-Za-z](?:\.[A-Za-z])*\.|(?:{ABBREVIATION}|{CLOSING})\.",
        All,
        Treebank,
    ),
    (r"{WORD}", All, Treebank),
    (r"{COMPOUND}", All, Word),
    // addresses
    (
        r#"(?i:https?)://[^ \t\n"<>|(){}]+[^ \t\n"<>|.!?(){},-]"#,
        All,
        Verbatim,
    ),
    (
        r#"(?i:www)\.(?:[^ \t\n"<>|.!?(){},]+\.)+[A-Za-z]{2,4}(?:{PATH})?"#,
        All,
        Verbatim,
    ),
    (
        r#"(?:[^\x00-\x20"`'(){}|$!,-_]+\.)+(?i:com|edu|net|org)(?:{PATH})?"#,
        All,
        Verbatim,
    ),
    (
        r#"(?:<|(?i:&lt;))?[A-Za-z0-9][^ \t\n"<>|(){}{NBSP}]*@(?:[^ \t\n"<>|(){}.{NBSP}]+\.)*[^ \t\n"<>|(){}.{NBSP}]+(?:>|(?i:&gt;))?"#,
        All,
        Verbatim,
    ),
    (r"@[A-Za-z_][A-Za-z_0-9]*", All, Treebank),
    (r"#{W}+", All, Verbatim),
    (r"{CLOSING}\.[\x00-\xff]{2}", Less(2), Treebank),
    // entities
    (
        r"&(?i:ht|lr|tl|ur|q[clr]|[co]dq);|&#[0-9]+;|(?i:&apos;|&quot;)",
        All,
        Verbatim,
    ),
    (r"&(?i:md|mdash|ndash);", All, As("--")),
    (r"(?i:&lt;)", All, As("<")),
    (r"(?i:&gt;)", All, As(">")),
    (r"(?i:&amp;)", All, As("&")),
    (r"(?i:&nbsp;)", All, Dropped),
    // numbers
    (r"[-+]?{NUMBER}", All, Treebank),
    (
        r"(?:{W}|{D})+(?:\.(?:{W}|{D})+)*\.{SUFFIX}(?:{GAP}|[.?!,])",
        Less(1),
        Verbatim,
    ), // a file's name
    (r"{ALTERNATIVE}(?:\\?/{ALTERNATIVE}){1,2}", All, Treebank),
    (r"{HYPHENATED}", All, Treebank),
    // faces
    (
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]][^A-Za-z0-9]",
        Less(1),
        Treebank,
    ),
    (r"[<>^x=~'-]_[<>^x=~'-]", All, Treebank),
    (
        r"\([<>^x=~'-][_.]?[<>^x=~'-]\)|\([<>^x=~']-[<>^x=~'`]\)",
        All,
        Treebank,
    ),
    // the rest
    (r"-+", All, Treebank),
    (r"[A-Z]*\$", All, Treebank),
    (r"\.{3,5}", All, As("...")),
    (r"(?i:art|ca|figs?|nos?|op|pp|prop)\.{GAP}?{D}", Stop, Treebank), // only before a number
    (r"{TAG}", All, Verbatim),
    (
        r"(?:{D}{1,4}[- {NBSP}])?{D}{1,4}(?:\\?/|{SOLIDUS}){D}{1,4}",
        All,
        Treebank,
    ),
    (r"{D}{1,2}[-/]{D}{1,2}[-/]{D}{2,4}", All, Treebank),
    (
        r"(?:\(\d{2,3}\)[ {NBSP}]?|(?:\+\+?)?(?:\d{2,4}[- {NBSP}])?\d{2,4}[- {NBSP}])\d{3,4}[- {NBSP}]?\d{3,5}",
        All,
        Treebank,
    ),
    (
        r"(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
        All,
        Treebank,
    ),
    (r"[?!]{2,}|#+|@+|\*+|_+|<<|>>|''", All, Treebank),
    (r"[`{QUOTE}{OPENING}{APOSTROPHE}]{1,2}", All, Treebank),
    (r"{SIGN}?(?:{RAISED}+|{LOWERED}+)", All, Treebank),
    (
        r"[^ \t\n{HYPHEN}{POINT}{NBSP}{SPACE}{BREAK}{OTHER}]",
        All,
        Treebank,
    ),
    (
        r"[ \t{NBSP}{SPACE}]+|[\n{HYPHEN}{POINT}{BREAK}{OTHER}]",
        All,
        Dropped,
    ),
];

/// Named parts of the rules; a part may use others.
pub fn definitions() -> Vec<(&'static str, String)> {
    let mut parts: Vec<(&str, String)> = vec![
        ("STARTER", format!("(?:{})", capitalised(STARTERS))),
        (
            "ABBREVIATION",
            format!("(?:(?i:{})|(?i:m)[ft](?i:g))", any_case(ABBREVIATIONS)),
        ),
        (
            "CLOSING",
            format!(
                r"(?:(?i:{})|{}|(?i:pp?t)[ye](?i:s)?|(?i:ed|ph)\.(?i:d))",
                any_case(CLOSING),
                capitalised(CLOSING_CAPITALISED)
            ),
        ),
    ];
    parts.extend(
        PARTS
            .iter()
            .chain(classes::NAMES)
            .map(|(name, pattern)| (*name, pattern.to_string())),
    );
    parts
}

const PARTS: &[(&str, &str)] = &[
    ("CLITIC", r"{APOS}(?:[dmsDMS]|(?i:ll|re|ve))"),
    ("WORD", r"{W}(?:{W}|{D})*(?:[.!?]{W}(?:{W}|{D})*)*"),
    (
        "COMPOUND",
        r"(?:[dDlLoO]{TICK}{A})?{A}+(?:[-_{HYPHEN}](?:[dDlLoO]{TICK}{A})?{A}+)*",
    ),
    (
        "HYPHENATED",
        r"[A-Za-z0-9][A-Za-z0-9.,{SOFT}]*(?:-(?:[A-Za-z0-9{SOFT}]+|[A-Za-z](?:\.[A-Za-z])+\.))+",
    ),
    ("ALTERNATIVE", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"),
    ("INITIALS", r"[A-Z]+(?:(?:[+&]|&(?i:amp);)[A-Z]+)+"),
    ("NUMBER", r"(?:{D}+|{D}*(?:[.:,{SOFT}{POINT}]{D}+)+)"),
    ("PATH", r#"/[^ \t\n"<>|()]+[^ \t\n"<>|.!?(){},-]"#),
    (
        "TAG",
        r"(?:<[!?][A-Za-z-][^>\n]*>|</{NAME} *>|<{NAME}(?: +{NAME}(?: *= *{VALUE})?)* */? *>)",
    ),
    ("NAME", r"[A-Za-z][A-Za-z0-9_:.-]*"),
    ("VALUE", r#"(?:'[^'\n]*'|"[^"\n]*")"#),
    (
        "SUFFIX",
        r"(?i:bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip)",
    ),
    ("GAP", r"[ \t\n{NBSP}{SPACE}{BREAK}]"),
    ("TICK", r"(?:{APOS}|[`{OPENING}])"),
    ("APOS", r"(?:['{APOSTROPHE}]|(?i:&apos;))"),
    ("A", r"[A-Za-z0-9{LETTER}{DIGIT}]"),
    ("D", r"[0-9{DIGIT}]"),
    ("W", r"(?:[A-Za-z{LETTER}{MARK}{SOFT}]|{ACCENTED})"),
    ("SPELT", r"(?:[A-Za-z{LETTER}]|{ACCENTED})"),
    ("ACCENTED", r"&[aeiouAEIOU](?i:acute|grave|uml);"),
];

/// Words that end the sentence before them when that ends in an initial.
const STARTERS: &str = "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many \
    More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When \
    While Yet You";

/// Abbreviations that do not end a sentence.
const ABBREVIATIONS: &str = "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs \
    elec ens ft gen gov govs hon insp invt jos lieut lt maj mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt \
    rep reps rev sen sens sfc sgt spc st ste supt treas vs wm";

/// Abbreviations that can end a sentence.
const CLOSING: &str = "ala al apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext \
    feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn \
    plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo";

/// The same where a small letter makes an ordinary word.
const CLOSING_CAPITALISED: &str = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash";

fn any_case(words: &str) -> String {
    words.split_ascii_whitespace().collect::<Vec<_>>().join("|")
}

fn capitalised(words: &str) -> String {
    let one = |word: &str| match word.split_at(1) {
        (first, "") => first.to_string(),
        (first, rest) => format!("[{first}](?i:{})", rest.replace('.', r"\.")),
    };
    words
        .split_ascii_whitespace()
        .map(one)
        .collect::<Vec<_>>()
        .join("|")
}

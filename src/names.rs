//! Names: how an IRC server compares them, globs over them, and the nearest to a mistyped one.
//!
//! A name that comes from IRC is folded once, by the server's CASEMAPPING, into a [`Name`]; from
//! then on names are compared by `==`.

use crate::sanitize::EXCERPT;
use std::cmp::Ordering;
use std::fmt;

/// Characters of a word for which a similar one is looked for; longer ones are no slip of the pen.
const SUGGESTABLE: usize = 40;

/// How a server compares names (CASEMAPPING in ISUPPORT). Besides A to Z, some of the characters
/// `[]\~` are the capitals of `{}|^` (RFC 1459, section 2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Casemapping {
    /// Letters only.
    Ascii,
    /// `[]\` as well.
    StrictRfc1459,
    /// `[]\~` as well; what a server without CASEMAPPING means.
    #[default]
    Rfc1459,
}

impl Casemapping {
    /// By its name in ISUPPORT. One that we do not know compares letters only, which takes nobody
    /// for somebody else.
    pub fn by_name(name: &str) -> Casemapping {
        match name {
            "rfc1459" => Casemapping::Rfc1459,
            "strict-rfc1459" => Casemapping::StrictRfc1459,
            _ => Casemapping::Ascii,
        }
    }

    fn fold_char(self, c: char) -> char {
        match (c, self) {
            ('[', Casemapping::Rfc1459 | Casemapping::StrictRfc1459) => '{',
            (']', Casemapping::Rfc1459 | Casemapping::StrictRfc1459) => '}',
            ('\\', Casemapping::Rfc1459 | Casemapping::StrictRfc1459) => '|',
            ('~', Casemapping::Rfc1459) => '^',
            _ => c.to_ascii_lowercase(),
        }
    }

    /// The lower-case form of a text, as the server sees it.
    pub fn fold(self, text: &str) -> String {
        text.chars().map(|c| self.fold_char(c)).collect()
    }

    /// A name of this server.
    pub fn name(self, text: &str) -> Name {
        Name {
            folded: self.fold(text),
            shown: text.to_owned(),
        }
    }
}

/// The name of a channel or a person. Compared by its folded form, shown as it was written.
#[derive(Clone, Debug, Default)]
pub struct Name {
    folded: String,
    shown: String,
}

impl Name {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.shown
    }

    pub fn is_channel(&self) -> bool {
        is_channel(&self.shown)
    }

    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// The same name under another casemapping, when the server has told its own.
    pub fn refold(&self, casemapping: Casemapping) -> Name {
        casemapping.name(&self.shown)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.folded == other.folded
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        self.folded.cmp(&other.folded)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Whether a name is a channel's: it begins with one of these (RFC 2812, section 1.3).
pub fn is_channel(name: &str) -> bool {
    name.starts_with(['#', '&', '+', '!'])
}

/// Whether a text matches a pattern with `*` (any text) and `?` (one character).
///
/// Each piece between two `*` is looked for once, from the left; where it is found first is always
/// good enough. So the time is about linear, whatever a stranger makes up.
pub fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return strip_piece(pattern, text) == Some("");
    };
    let Some(mut text) = strip_piece(first, text) else {
        return false;
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        match after_piece(piece, text) {
            Some(after) => text = after,
            None => return false,
        }
    }
    let length = last.chars().count();
    let tail = if length == 0 {
        Some(text.len())
    } else {
        text.char_indices().rev().nth(length - 1).map(|(at, _)| at)
    };
    tail.is_some_and(|at| strip_piece(last, &text[at..]) == Some(""))
}

/// The text behind a piece (without `*`) that it begins with.
fn strip_piece<'a>(piece: &str, text: &'a str) -> Option<&'a str> {
    let mut rest = text.chars();
    for wanted in piece.chars() {
        let c = rest.next()?;
        if wanted != '?' && wanted != c {
            return None;
        }
    }
    Some(rest.as_str())
}

/// The text behind the first place where a piece (without `*`) stands.
fn after_piece<'a>(piece: &str, text: &'a str) -> Option<&'a str> {
    if !piece.contains('?') {
        let at = text.find(piece)?;
        return Some(&text[at + piece.len()..]);
    }
    let starts = text.char_indices().map(|(at, _)| at);
    starts
        .chain([text.len()])
        .find_map(|at| strip_piece(piece, &text[at..]))
}

/// Names to pass or not: globs (or whole words), some of them behind a `!` to leave out what they
/// match. The order does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    include: Vec<String>,
    exclude: Vec<String>,
}

impl Filter {
    /// From words like `linux*` and `!*nightly*`. The error is a word that excludes nothing.
    pub fn new(words: Vec<String>) -> Result<Filter, String> {
        let mut filter = Filter::default();
        for word in words {
            match word.strip_prefix('!') {
                Some("") => return Err(word),
                Some(excluded) => filter.exclude.push(excluded.to_owned()),
                None => filter.include.push(word),
            }
        }
        Ok(filter)
    }

    /// Whether a name is included (or there are exclusions only) and not excluded.
    pub fn passes(&self, name: &str) -> bool {
        let included =
            self.include.is_empty() || self.include.iter().any(|pattern| glob(pattern, name));
        included && !self.exclude.iter().any(|pattern| glob(pattern, name))
    }

    /// The same for something that has several words, like a builder its tags; these are no globs.
    pub fn passes_any(&self, words: &[String]) -> bool {
        let included = self.include.is_empty() || words.iter().any(|w| self.include.contains(w));
        included && !words.iter().any(|word| self.exclude.contains(word))
    }

    /// All patterns, with what they exclude without its `!`.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        let all = self.include.iter().chain(&self.exclude);
        all.map(String::as_str)
    }
}

/// The candidate that a mistyped word most likely meant: at most a third of it is wrong
/// (Levenshtein's distance, letters of either case alike). Nothing for very long words and globs.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = word.to_lowercase().chars().take(EXCERPT).collect();
    if wanted.len() > SUGGESTABLE || word.contains(['*', '?']) {
        return None;
    }
    let mut best = None;
    let mut best_distance = usize::MAX;
    for candidate in candidates {
        let length = candidate.chars().count();
        let tolerance = wanted.len().max(length).div_ceil(3);
        // The distance is never less than the difference of the lengths.
        if wanted.len().abs_diff(length) > tolerance.min(best_distance) {
            continue;
        }
        let distance = levenshtein(&wanted, candidate);
        if distance <= tolerance && distance < best_distance {
            best = Some(candidate);
            best_distance = distance;
        }
    }
    best
}

/// Whether a word is another one with at most one letter wrong, or with its letters in another order.
pub fn is_mistyped(word: &str, meant: &str) -> bool {
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.to_lowercase().chars().collect();
        letters.sort_unstable();
        letters
    };
    let is_short = word.len() <= 2 * meant.len();
    let wanted: Vec<char> = word.to_lowercase().chars().collect();
    is_short && (levenshtein(&wanted, meant) <= 1 || letters(word) == letters(meant))
}

fn levenshtein(wanted: &[char], other: &str) -> usize {
    let mut row: Vec<usize> = (0..=wanted.len()).collect();
    for c in other.to_lowercase().chars() {
        let above = row.clone();
        row[0] += 1;
        for (i, w) in wanted.iter().enumerate() {
            let replaced = above[i] + usize::from(*w != c);
            let inserted = above[i + 1] + 1;
            let deleted = row[i] + 1;
            row[i + 1] = replaced.min(inserted).min(deleted);
        }
    }
    row[wanted.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;
    use std::time::Instant;

    #[test]
    fn casemappings_differ_where_they_should() {
        use Casemapping::{Ascii, Rfc1459, StrictRfc1459};
        let same = |mapping: Casemapping, a, b| mapping.name(a) == mapping.name(b);
        assert!(same(Rfc1459, "Bot[]\\~", "bot{}|^"));
        assert!(same(StrictRfc1459, "Bot[]\\", "bot{}|"));
        assert!(!same(StrictRfc1459, "~", "^"));
        assert!(same(Ascii, "BOT", "bot") && !same(Ascii, "[", "{"));
        assert_eq!(Casemapping::by_name("ascii"), Ascii);
        assert_eq!(Casemapping::by_name("rfc7613"), Ascii);
    }

    #[test]
    fn a_name_is_shown_as_it_was_written() {
        let name = Casemapping::Rfc1459.name("#Dev[1]");
        assert_eq!(name.to_string(), "#Dev[1]");
        assert_eq!(name, Casemapping::Rfc1459.name("#dev{1}"));
        let refolded = name.refold(Casemapping::Ascii);
        assert_ne!(refolded, Casemapping::Ascii.name("#dev{1}"));
        assert_eq!(refolded.as_str(), "#Dev[1]");
    }

    #[test]
    fn globs() {
        for (pattern, text) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("a?c", "a\u{e9}c"),
            ("*a*b*", "xaxbx"),
            ("", ""),
            ("*?b", "aab"),
            ("a**b", "ab"),
            ("*aab", "aaab"),
            ("*a?*c*", "xxabcc"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a*c", "abcd"),
            ("?", ""),
            ("", "x"),
            ("a", "A"),
            ("*ab", "aab "),
            ("ab*ba", "aba"),
            ("a*?", "a"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }

    /// The textbook definition, to compare with.
    fn matches_by_definition(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => {
                (0..=text.len()).any(|taken| matches_by_definition(rest, &text[taken..]))
            }
            [c, rest @ ..] => {
                let first_fits = !text.is_empty() && (*c == '?' || *c == text[0]);
                first_fits && matches_by_definition(rest, &text[1..])
            }
        }
    }

    #[test]
    fn fuzz_glob() {
        fuzz(&[b"*a?b*ab|xaabbab", b"a*b|ab"], |bytes, _| {
            let text: String = String::from_utf8_lossy(bytes).chars().take(24).collect();
            let (pattern, text) = text.split_once('|').unwrap_or((&text, "aab"));
            let pattern_chars: Vec<char> = pattern.chars().collect();
            let text_chars: Vec<char> = text.chars().collect();
            let expected = matches_by_definition(&pattern_chars, &text_chars);
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        });
    }

    #[test]
    fn a_hostile_pattern_costs_next_to_nothing() {
        let text = "a".repeat(1000);
        let start = Instant::now();
        for pattern in ["*a".repeat(200) + "b", "*a?".repeat(130) + "b"] {
            (0..1000).for_each(|_| assert!(!glob(&pattern, &text)));
        }
        // A generous bound: backtracking would take longer than the universe has.
        assert!(start.elapsed().as_secs() < 10);
    }

    #[test]
    fn filters_include_and_exclude_in_any_order() {
        let filter = |words: &str| {
            let words = words.split_whitespace().map(str::to_owned).collect();
            Filter::new(words).unwrap()
        };
        assert!(filter("").passes("x"));
        assert!(filter("!*nightly*").passes("linux"));
        assert!(!filter("!*nightly*").passes("linux-nightly"));
        for words in ["linux* !*nightly", "!*nightly linux*"] {
            assert!(filter(words).passes("linux-1"));
            assert!(!filter(words).passes("linux-nightly"));
            assert!(!filter(words).passes("mac"));
        }
        let tags = ["release".to_owned(), "slow".to_owned()];
        assert!(filter("release").passes_any(&tags));
        assert!(!filter("release !slow").passes_any(&tags));
        assert!(filter("!fast").passes_any(&tags));
        assert!(!filter("rel*").passes_any(&tags));
        assert_eq!(Filter::new(vec!["!".into()]), Err("!".into()));
    }

    #[test]
    fn the_nearest_is_near() {
        let near = |word| nearest(word, ["status", "stop", "mac os"].into_iter());
        assert_eq!(near("stauts"), Some("status"));
        assert_eq!(near("macos"), Some("mac os"));
        assert_eq!(near("frobnicate"), None);
        assert_eq!(near("stat?s"), None, "a glob is no slip");
        assert_eq!(near(&"s".repeat(1000)), None);
    }
}

//! The sentences: what the bot says of builds, and how outside text is made safe to say. Pure.

use crate::status::Outcome::{self, Cancelled, Retry, Skipped, Success};
use crate::status::{Build, Builder, Change, News, Settings, Status};

const QUOTE: usize = 120; // characters of one outside text (a reason, a step, a name) in a line
const ERROR: usize = 600; // of the master's complaint, which may list what there is
const NAMES: usize = 6; // of a blame list or of revisions in a line

/// Outside text as it may appear in a line: without C0 and C1 controls (IRC's formatting codes among
/// them), line separators, runs of blanks, and the marks and overrides of the Unicode bidirectional
/// algorithm (UAX #9), which can make a line read as another.
pub fn whole(text: &str) -> String {
    let marks = [
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
    ];
    let gap = |c: char| {
        c.is_whitespace() || c.is_control() || marks.iter().any(|range| range.contains(&c))
    };
    text.split(gap)
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The same, cut at `QUOTE` characters.
pub fn clean(text: &str) -> String {
    cut(&whole(text), QUOTE)
}

/// The same, for an error that someone can act on only if they see most of it.
pub fn complaint(text: &str) -> String {
    cut(&whole(text), ERROR)
}

fn cut(text: &str, most: usize) -> String {
    text.char_indices()
        .nth(most)
        .map_or(text.to_owned(), |(cut, _)| format!("{}…", &text[..cut]))
}

/// A builder's name as it must be typed: quoted where it holds a blank or a quote.
pub fn quoted(name: &str) -> String {
    let name = clean(name);
    match name.is_empty() || name.contains([' ', '"', '\'', '\\']) {
        true => format!("\"{}\"", name.replace('\\', r"\\").replace('"', "\\\"")),
        false => name,
    }
}

/// A span of time in its two largest units: `59s`, `2m 5s`, `3h 4m`, `2d 1h`.
pub fn duration(seconds: i64) -> String {
    let (large, unit, small, rest) = match seconds {
        86_400.. => (seconds / 86_400, "d", seconds / 3600 % 24, "h"),
        3600.. => (seconds / 3600, "h", seconds / 60 % 60, "m"),
        60.. => (seconds / 60, "m", seconds % 60, "s"),
        _ => return format!("{seconds}s"),
    };
    if small == 0 {
        format!("{large}{unit}")
    } else {
        format!("{large}{unit} {small}{rest}")
    }
}

/// The candidate that a mistyped word most likely meant: at most a third of it is wrong
/// (Levenshtein's distance, letters of either case alike).
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = word.to_lowercase().chars().take(QUOTE).collect();
    let distance = |other: &str| {
        let mut row: Vec<usize> = (0..=wanted.len()).collect();
        for c in other.to_lowercase().chars().take(QUOTE) {
            let above = row.clone();
            row[0] += 1;
            for (j, w) in wanted.iter().enumerate() {
                row[j + 1] = (above[j] + usize::from(*w != c))
                    .min(above[j + 1] + 1)
                    .min(row[j] + 1);
            }
        }
        row[wanted.len()]
    };
    let (far, best) = candidates
        .map(|c| (distance(c), c))
        .min_by_key(|&(d, _)| d)?;
    (far <= wanted.len().max(best.chars().count()).div_ceil(3)).then_some(best)
}

/// Base64 with padding (RFC 4648, section 4), for SASL and Basic authentication.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |g, &b| g << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        let digit = |i: usize| char::from(DIGITS[(group >> (18 - 6 * i)) as usize & 63]);
        out.extend((0..4).map(|i| if i <= chunk.len() { digit(i) } else { '=' }));
    }
    out
}

/// `1 build`, `2 builds`.
pub fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// The result word, in colour where the target wants colours. Two digits always, so that a digit
/// that follows is no part of the colour.
fn result(outcome: Outcome, colors: bool) -> String {
    let color = ["03", "07", "04", "14", "06", "02", "13"][outcome as usize];
    if colors {
        format!("\u{3}{color}{}\u{f}", outcome.word())
    } else {
        outcome.word().to_owned()
    }
}

/// The link to a build for people (BUILDBOT.md: base, `#/builders/ID/builds/NUMBER`).
pub fn url(base: &str, build: &Build) -> String {
    format!(
        "{base}#/builders/{}/builds/{}",
        build.builderid, build.number
    )
}

/// The master's reason, less the result that it repeats in front and behind; nothing for success.
fn reason(build: &Build) -> String {
    let Some(outcome) = build.outcome().filter(|&o| o != Success) else {
        return String::new();
    };
    let text = clean(&build.state_string);
    let text = text
        .strip_suffix(&format!("({})", outcome.word()))
        .unwrap_or(&text)
        .trim_end();
    let text = text
        .strip_prefix(outcome.word())
        .map_or(text, str::trim_start);
    if matches!(text, "" | "finished") {
        String::new()
    } else {
        format!(": {text}")
    }
}

/// What changed: `fixed`, `was success`, `3rd in a row`; nothing for one success after another, and
/// only of the four outcomes that count: a cancelled build says nothing of the code.
fn change(outcome: Outcome, was: Option<Outcome>, streak: u32) -> String {
    match (outcome, was) {
        (Skipped | Retry | Cancelled, _) | (_, None) | (Success, Some(Success)) => String::new(),
        (Success, Some(was)) if !was.is_good() => " (fixed)".into(),
        (_, Some(was)) if was != outcome => format!(" (was {})", was.word()),
        _ if streak == 0 => " (again)".into(),
        _ => format!(" ({} in a row)", ordinal(streak)),
    }
}

fn ordinal(n: u32) -> String {
    let teen = n / 10 % 10 == 1;
    format!(
        "{n}{}",
        ["th", "st", "nd", "rd"]
            .get((n % 10) as usize)
            .filter(|_| !teen)
            .unwrap_or(&"th")
    )
}

fn some_of(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES).map(|n| clean(n)).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `builder #number`: what a build is called in a line.
pub fn label(news: &News) -> String {
    let (name, number) = (clean(&news.name), news.build.number);
    match news.fact {
        Some(fact) => name + fact,
        None if news.build.complete => format!("{name} #{number}"),
        None => format!("{name} #{number} started"),
    }
}

/// One announcement, as a target wants it: builder and number, result, what changed, the master's
/// own reason, how long it took, who changed what, and where to read on.
pub fn announcement(news: &News, look: &Settings, base: &str) -> String {
    let (mut line, build) = (label(news), &news.build);
    let changes = build.changes.clone().unwrap_or_default();
    if news.fact.is_some() {
        return line;
    }
    if let Some(outcome) = build.outcome() {
        let (result, change) = (
            result(outcome, look.colors),
            change(outcome, news.was, news.streak),
        );
        line += &format!(
            " {result}{change}{}, took {}",
            reason(build),
            duration(build.seconds(0))
        );
        if look.blame && !outcome.is_good() && !changes.authors.is_empty() {
            line += &format!(", blame {}", some_of(&changes.authors));
        }
    }
    if look.revisions && !changes.revisions.is_empty() {
        let short: Vec<String> = changes
            .revisions
            .iter()
            .map(|r| short_revision(r))
            .collect();
        line += &format!(
            ", revision{} {}",
            if short.len() == 1 { "" } else { "s" },
            some_of(&short)
        );
    }
    format!("{line} {}", url(base, build))
}

/// A line of at most `budget` bytes. The link at its end is worth more than the end of a long reason.
pub fn fitted(text: &str, budget: usize) -> String {
    if text.len() <= budget {
        return text.to_owned();
    }
    let (line, link) = text.rsplit_once(' ').unwrap_or((text, ""));
    let room = budget
        .saturating_sub("… ".len() + link.len())
        .max(budget / 2);
    let line = format!("{}… {link}", &line[..line.floor_char_boundary(room)]);
    line[..line.floor_char_boundary(budget)].to_owned()
}

/// A change in `list changes`: revision, author, first line of the comment.
pub fn change_line(change: &Change) -> String {
    let revision = short_revision(change.revision.as_deref().unwrap_or("(no revision)"));
    let comment = change
        .comments
        .as_deref()
        .unwrap_or("")
        .lines()
        .next()
        .unwrap_or("");
    let branch = change
        .branch
        .as_deref()
        .map_or(String::new(), |b| format!(" on {}", clean(b)));
    format!(
        "{revision}{branch} by {}: {}",
        author(&change.author),
        clean(comment)
    )
}

/// A hash in the length that people use; other revisions whole.
pub fn short_revision(revision: &str) -> String {
    let hash = revision.len() >= 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    if hash {
        revision[..10].to_owned()
    } else {
        clean(revision)
    }
}

/// A person's name out of `Name <mail>`; an address alone stays as it is.
pub fn author(text: &str) -> String {
    let name = text.split('<').next().unwrap_or("").trim();
    clean(if name.is_empty() { text } else { name })
}

/// `#7 failure 3m ago: failed 'make'`: the last build as `status` and `last` show it.
fn last_build(build: &Build, look: &Settings, now: i64) -> String {
    let Some(outcome) = build.outcome() else {
        return String::new();
    };
    let ago = duration(
        now.saturating_sub(build.complete_at.unwrap_or(0.0) as i64)
            .max(0),
    );
    format!(
        "#{} {} {ago} ago{}",
        build.number,
        result(outcome, look.colors),
        reason(build)
    )
}

/// A running build, in the line of `status`.
fn progress(build: &Build, builder: &Builder, now: i64) -> String {
    let step = build
        .step
        .as_ref()
        .map_or(String::new(), |s| format!(" (step {})", clean(s)));
    let so_far = build.seconds(now);
    let left = match builder.typical().map_or(0, |typical| typical - so_far) {
        0 => String::new(),
        left @ 1.. => format!(", about {} to go", duration(left)),
        late => format!(", {} longer than usual", duration(-late)),
    };
    format!(
        "building #{}{step} for {}{left}",
        build.number,
        duration(so_far)
    )
}

/// The line of `status` for one builder.
pub fn status_line(status: &Status, builder: &Builder, look: &Settings, now: i64) -> String {
    let workers = || status.workers_of(builder.id);
    let mut parts: Vec<String> = status
        .running(builder.id)
        .map(|b| progress(b, builder, now))
        .collect();
    let building = !parts.is_empty();
    if !workers().any(|w| w.online) {
        parts.insert(0, "offline".into());
    } else if !building {
        parts.push("idle".into());
    }
    match &builder.last {
        _ if building => {}
        Some(last) => parts.push(format!("last {}", last_build(last, look, now))),
        None => parts.extend(builder.asked.then(|| "no builds yet".into())),
    }
    let queued = status.queued.values().filter(|&&b| b == builder.id).count();
    parts.extend((queued > 0).then(|| format!("{queued} queued")));
    let paused: Vec<String> = workers()
        .filter(|w| w.paused)
        .map(|w| w.name.clone())
        .collect();
    parts.extend((!paused.is_empty()).then(|| format!("paused: {}", some_of(&paused))));
    format!("{}: {}", clean(&builder.name), parts.join("; "))
}

/// The line of `last` for one builder.
pub fn last_line(status: &Status, builder: &Builder, look: &Settings, now: i64) -> String {
    let name = clean(&builder.name);
    let Some(last) = &builder.last else {
        return format!(
            "{name}: {}",
            if builder.asked {
                "no builds yet"
            } else {
                "no recent build"
            }
        );
    };
    let (shown, took) = (last_build(last, look, now), duration(last.seconds(0)));
    format!("{name}: {shown}, took {took} {}", url(&status.url, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Changes;
    use crate::status::Worker;
    use crate::status::tests::{build, settings, status};

    fn news(id: u64, was: Option<Outcome>, now: Outcome, reason: &str) -> News {
        let mut s = status(&["linux x86"], "finished");
        if let Some(was) = was {
            s.apply(build(id - 1, id - 1, Some(was)), 0);
        }
        let done = Build {
            state_string: reason.into(),
            ..build(id, id, Some(now))
        };
        s.apply(done, 0).unwrap()
    }

    #[test]
    fn announcements_read_like_this() {
        use Outcome::*;
        let say = |n: News| announcement(&n, &settings(""), "http://m/");
        let url = "http://m/#/builders/1/builds/2";
        let mut first = news(2, Some(Success), Failure, "failed 'make' (failure)");
        first.build.changes = Some(Changes {
            authors: vec!["Ann".into(), "B\u{f6}b".into()],
            revisions: vec![],
        });
        assert_eq!(
            say(first),
            format!(
                "linux x86 #2 failure (was success): failed 'make', took 1m, blame Ann, B\u{f6}b {url}"
            )
        );
        assert_eq!(
            say(news(2, Some(Failure), Success, "build successful")),
            format!("linux x86 #2 success (fixed), took 1m {url}")
        );
        assert_eq!(
            say(news(2, Some(Failure), Failure, "failed")),
            format!("linux x86 #2 failure (2nd in a row): failed, took 1m {url}")
        );
        assert_eq!(
            say(news(2, Some(Success), Success, "x")),
            format!("linux x86 #2 success, took 1m {url}")
        );
        assert_eq!(
            say(news(
                2,
                Some(Success),
                Cancelled,
                "cancelled (no) 'sh' (cancelled)"
            )),
            format!("linux x86 #2 cancelled: (no) 'sh', took 1m {url}")
        );
        assert_eq!(
            say(news(2, None, Retry, "retry lost connection 'x' (retry)")),
            format!("linux x86 #2 retry: lost connection 'x', took 1m {url}")
        );
        let mut revisions = news(2, Some(Warnings), Success, "");
        let hash = "0123456789abcdef0123456789abcdef01234567";
        revisions.build.changes = Some(Changes {
            authors: vec![],
            revisions: vec![hash.into(), "r12".into()],
        });
        let look = Settings {
            revisions: true,
            colors: true,
            ..settings("")
        };
        assert_eq!(
            announcement(&revisions, &look, "http://m/"),
            format!(
                "linux x86 #2 \u{3}03success\u{f} (was warnings), took 1m, revisions 0123456789, r12 {url}"
            )
        );
    }

    #[test]
    fn what_is_no_build_is_a_sentence() {
        let news = News {
            name: "worker w\u{2}1".into(),
            fact: Some(" is back"),
            ..News::default()
        };
        assert_eq!(
            announcement(&news, &settings(""), "http://m/"),
            "worker w 1 is back"
        );
    }

    #[test]
    fn a_long_announcement_keeps_its_link() {
        let mut long = news(2, None, Outcome::Failure, &"\u{6f22}".repeat(200));
        long.build.changes = Some(Changes {
            authors: vec!["\u{6f22}".repeat(100); 6],
            revisions: vec![],
        });
        let line = announcement(&long, &settings(""), "http://m/");
        for budget in [200, 380, 430] {
            let line = fitted(&line, budget);
            let ends_well = line.ends_with("\u{6f22}… http://m/#/builders/1/builds/2");
            assert!(
                line.len() <= budget && line.len() > budget - 4 && ends_well,
                "{line}"
            );
        }
        assert_eq!(fitted("short http://m/", 15), "short http://m/");
        let link = format!("app #1 {}", "x".repeat(500));
        assert!(fitted(&link, 400).starts_with("app #1… xxx") && fitted(&link, 400).len() == 400);
    }

    #[test]
    fn outside_text_loses_what_could_harm() {
        assert_eq!(
            clean("a\r\nQUIT\0\u{2}b\u{3}04,01c\u{202e}d \t e"),
            "a QUIT b 04,01c d e"
        );
        assert_eq!(clean(&"\u{e9}".repeat(500)).chars().count(), QUOTE + 1);
        assert_eq!(clean("\u{1}\u{2}"), "");
        assert_eq!(quoted("a b"), "\"a b\"");
        assert_eq!(quoted("a\"b\\c"), r#""a\"b\\c""#);
    }

    #[test]
    fn durations_show_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (125, "2m 5s"),
            (7200, "2h"),
            (11_040, "3h 4m"),
            (176_400, "2d 1h"),
            (86_400, "1d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(
            [1, 2, 3, 4, 11, 12, 21, 112].map(ordinal),
            ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"]
        );
    }

    #[test]
    fn base64_of_rfc_4648() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        pairs
            .iter()
            .for_each(|(text, coded)| assert_eq!(base64(text.as_bytes()), *coded));
    }

    #[test]
    fn authors_are_people() {
        assert_eq!(author("B\u{f6}b <bob@example.org>"), "B\u{f6}b");
        assert_eq!(author("<bob@example.org>"), "<bob@example.org>");
        assert_eq!(author("bob@example.org"), "bob@example.org");
    }

    #[test]
    fn status_lines_read_like_this() {
        let mut s = status(&["b"], "finished");
        let look = settings("");
        let say = |s: &Status| status_line(s, &s.builders[&1], &look, 1180);
        assert_eq!(say(&s), "b: offline");
        s.workers.insert(
            1,
            Worker {
                name: "w1".into(),
                online: true,
                builders: [1].into(),
                ..Worker::default()
            },
        );
        s.apply(build(1, 1, Some(Outcome::Success)), 0);
        assert_eq!(say(&s), "b: idle; last #1 success 2m ago");
        s.apply(build(2, 2, None), 0);
        s.open.get_mut(&2).unwrap().step = Some("compile".into());
        s.queued.insert(9, 1);
        assert_eq!(
            say(&s),
            "b: building #2 (step compile) for 3m, 2m longer than usual; 1 queued"
        );
        s.workers.get_mut(&1).unwrap().paused = true;
        s.apply(build(2, 2, Some(Outcome::Failure)), 0);
        assert_eq!(
            say(&s),
            "b: idle; last #2 failure 2m ago: state; 1 queued; paused: w1"
        );
        assert_eq!(
            last_line(&s, &s.builders[&1], &look, 1180),
            "b: #2 failure 2m ago: state, took 1m #/builders/1/builds/2"
        );
    }
}

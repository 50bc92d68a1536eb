//! The manual pages, `--help`, bot.conf.example and README agree.

mod common;

use common::{Bot, NO_MASTER, execute, root, run, scratch, tool};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

const CODES: [&str; 7] = ["0", "64", "65", "69", "70", "74", "78"];

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A manual page as people see it, without line breaks.
fn page(name: &str) -> String {
    let out = Command::new(tool("mandoc"))
        .args(["-T", "utf8", "-O", "width=1000"])
        .arg(root().join(name))
        .output();
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    // Bold and underlined characters are overstruck.
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '\u{8}' => plain.truncate(plain.len() - plain.chars().last().map_or(0, char::len_utf8)),
            c => plain.push(c),
        }
    }
    plain
}

/// What stands behind a text, up to another.
#[track_caller]
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let Some((_, rest)) = text.split_once(start) else {
        panic!("no {start:?}");
    };
    rest.split(end).next().unwrap()
}

/// The keys of each section of bot.conf.example.
fn keys_of_the_example() -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in read("bot.conf.example")
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
    {
        if let Some(header) = line.strip_prefix('[') {
            section = header.split([' ', ']']).next().unwrap().to_string();
        } else if let Some((key, _)) = line.split_once(" = ")
            && !line.starts_with(' ')
        {
            keys.insert(format!("{section}: {key}"));
        }
    }
    keys
}

/// The keys of each section of bot.conf(5): the items of the lists under `.Ss [section]`. Those of the second
/// list of [irc] hold for channels, too.
fn keys_of_the_manual() -> BTreeSet<String> {
    let mut sections = Vec::new();
    let mut keys = BTreeSet::new();
    for line in read("doc/bot.conf.5").lines() {
        if let Some(rest) = line.strip_prefix(".Ss [") {
            sections = vec![rest.split([' ', ']']).next().unwrap().to_string()];
        } else if line.starts_with(".Sh ") {
            sections.clear();
        } else if line
            == "These are defaults for all channels, and may stand in a channel's section too:"
        {
            sections.push("channel".to_string());
        } else if line == "A value is" {
            sections.clear(); // what follows are the forms of WHO
        } else if let Some(items) = line.strip_prefix(".It Cm ") {
            let words = items.split(" , ");
            keys.extend(words.flat_map(|word| {
                sections
                    .iter()
                    .map(move |section| format!("{section}: {word}"))
            }));
        }
    }
    keys
}

#[test]
fn the_manual_knows_every_key_and_no_other() {
    let mut example = keys_of_the_example();
    // The keys of [nicks] are people.
    example.retain(|key| !key.starts_with("nicks: "));
    let manual = keys_of_the_manual();
    let missing: Vec<_> = example.difference(&manual).collect();
    let surplus: Vec<_> = manual.difference(&example).collect();
    assert!(missing.is_empty(), "bot.conf(5) lacks {missing:?}");
    assert!(surplus.is_empty(), "bot.conf(5) has {surplus:?}");
}

/// A default that the example states for a flag, a number or a time stands in the manual, too.
#[test]
fn the_manual_knows_the_defaults() {
    let manual = page("doc/bot.conf.5");
    let example = read("bot.conf.example");
    for (key, value, sentence) in [
        ("poll_interval", "15", "15 seconds."),
        ("event_stream", "yes", "open: yes."),
        ("timeout", "30", "30 seconds."),
        ("port", "6667", "6667, or 6697 with use_ssl."),
        ("use_ssl", "no", "at least: no."),
        ("nickserv", "NickServ", "goes to: NickServ."),
        ("sasl", "no", "no (the default)"),
        ("ping_timeout", "150", "150 seconds."),
        ("pacing", "auto", "auto (the default), as fast as"),
        ("allow_force", "no", "builds: no."),
        ("notice_on_channel", "no", "NOTICEs: no."),
        ("use_colors", "no", "colour: no."),
        ("use_revisions", "no", "build: no."),
        ("show_blame_list", "yes", "wrong: yes."),
        ("announce", "builds", "builds (the default): a line"),
        ("pm_blamed", "no", "started: no."),
        ("catch_up", "1h", "line: 1 hour."),
    ] {
        assert!(
            example.contains(&format!("\n#{key} = {value}\n")),
            "bot.conf.example: {key} is not {value}"
        );
        // The item and what is indented below it.
        let mut lines = manual
            .lines()
            .skip_while(|line| line.split_whitespace().next() != Some(key));
        let first = lines
            .next()
            .unwrap_or_else(|| panic!("no {key} in bot.conf(5)"));
        let rest = lines.take_while(|line| line.starts_with("             "));
        let mut words: Vec<&str> = first.split_whitespace().collect();
        for line in rest {
            words.extend(line.split_whitespace());
        }
        let text = words.join(" ");
        assert!(
            text.contains(sentence),
            "bot.conf(5) does not say `{sentence}`: {text}"
        );
    }
}

#[test]
fn the_options_are_in_the_manual_and_in_the_readme() {
    let help = Bot::run(&scratch("docs"), &["--help"]).stdout;
    let manual = read("doc/buildbot-irc.1");
    let readme = read("README.md");
    let synopsis = manual.split(".Sh DESCRIPTION").next().unwrap();
    let usage: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("    buildbot-irc "))
        .collect();
    let mut options = 0;
    for line in help.lines().filter(|line| line.trim().starts_with('-')) {
        let (short, long) = line.split_once("--").unwrap();
        let short = short.trim_matches([' ', '-', ',']);
        let long = long.split_whitespace().next().unwrap();
        options += 1;
        let has_short = !short.is_empty();
        let item = if has_short {
            format!(".It Fl {short} , Fl -{long}")
        } else {
            format!(".It Fl -{long}")
        };
        assert!(manual.contains(&item), "buildbot-irc(1) lacks {item}");
        let flag = if has_short {
            short.to_string()
        } else {
            format!("-{long}")
        };
        let there = synopsis.lines().any(|line| {
            let mut words = line
                .split([' ', '|', '.'])
                .skip_while(|word| *word != "Fl")
                .skip(1);
            words.any(|word| word == flag)
        });
        assert!(there, "the synopsis of buildbot-irc(1) lacks -{flag}");
        if !["help", "version"].contains(&long) {
            let flag = format!("-{flag}");
            let words = usage
                .iter()
                .flat_map(|line| line.split([' ', '[', ']', '|']));
            assert!(
                words.clone().any(|word| word == flag),
                "README's synopsis lacks {flag}"
            );
        }
    }
    assert!(options >= 8, "{help}");
}

#[test]
fn the_exit_codes_are_in_the_manual_and_in_the_readme() {
    let manual = read("doc/buildbot-irc.1");
    let section = between(&manual, ".Sh EXIT STATUS", ".Sh ");
    let items = section.lines().filter_map(|line| line.strip_prefix(".It "));
    assert_eq!(items.collect::<Vec<_>>(), CODES);
    let readme = read("README.md");
    let table = between(&readme, "| exit code", "\n\n");
    let mut codes = Vec::new();
    for row in table.lines().skip(2) {
        let cell = row.split('|').nth(1).unwrap();
        codes.extend(cell.split(',').map(str::trim));
    }
    assert_eq!(codes, CODES);
}

/// Every command that the program knows is in the manual, and in README.
#[test]
fn the_commands_are_in_the_manual_and_in_the_readme() {
    let done = execute(NO_MASTER, "", "commands");
    let names = done.stdout.trim().strip_prefix("commands: ");
    let manual = page("doc/buildbot-irc.1");
    let readme = read("README.md");
    let section = between(&manual, "\nCOMMANDS", "\nSIGNALS");
    let table = between(&readme, "## Commands", "\n## ");
    for name in names.expect("a list").split(' ') {
        let has = |text: &str| {
            let mut words = text.split(|c: char| !c.is_alphanumeric());
            words.any(|word| word == name)
        };
        assert!(has(section), "{name} is not in buildbot-irc(1)");
        assert!(has(table), "{name} is not in README");
    }
}

#[test]
fn the_manual_pages_are_good_mdoc() {
    for name in ["doc/buildbot-irc.1", "doc/bot.conf.5"] {
        let out = Command::new(tool("mandoc"))
            .args(["-T", "lint"])
            .arg(root().join(name))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).to_string();
        // Which pages are installed here is another matter.
        let found: Vec<&str> = text
            .lines()
            .filter(|line| !line.contains(": referenced manual not found: "))
            .collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

/// The files below src/, as `src/…`.
fn source_files() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root()).unwrap();
                files.push(name.display().to_string());
            }
        }
    }
    files
}

/// The floor of each room: the table at the top of tests/floors.sh.
fn floors() -> BTreeMap<String, String> {
    let script = read("tests/floors.sh");
    let table = between(&script, "\ntable='\n", "\n'");
    let mut floors = BTreeMap::new();
    for row in table.lines() {
        let (floor, rooms) = row.split_once(' ').unwrap();
        for room in rooms.split(' ') {
            floors.insert(room.to_string(), floor.to_string());
        }
    }
    floors
}

/// The size of each room in lines of program, by tests/rooms.sh.
fn sizes() -> BTreeMap<String, usize> {
    let done = run("sh", root(), &["tests/rooms.sh"]);
    assert_eq!(done.code, 0, "{done:?}");
    let rows = done.stdout.lines().filter(|row| row.ends_with(".rs"));
    let sizes = rows.map(|row| {
        let (size, file) = row.split_once(' ').unwrap();
        (file.to_string(), size.parse().unwrap())
    });
    sizes.collect()
}

/// A size that a page gives is right within a tenth, or three lines.
#[track_caller]
fn check_size(what: &str, given: &str, size: usize) {
    let given: usize = given.parse().unwrap_or_else(|_| panic!("{what}: {given}"));
    assert!(
        given.abs_diff(size) <= (size / 10).max(3),
        "{what} has {size} lines, on the page {given}; `sh tests/rooms.sh --write` mends it"
    );
}

/// The map of the source names every room with its floor and its size, from the top floor down.
#[test]
fn the_map_knows_every_room() {
    let page = read("doc/source.md");
    let map = between(&page, "| floor |", "\n\n");
    let floors = floors();
    let mut sizes = sizes();
    let files = source_files();
    let rooms = files
        .iter()
        .filter(|file| file.ends_with(".rs") && !file.ends_with("/tests.rs"));
    for file in rooms {
        assert!(sizes.contains_key(file), "tests/rooms.sh lacks {file}");
    }
    let mut last = "9";
    for row in map.lines().skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [floor, file, size, _] = cells[..] else {
            panic!("{row}");
        };
        assert!(floor <= last, "{row} stands below floor {last}");
        last = floor;
        let file = file.trim_matches('`');
        let actual = sizes.remove(file);
        let actual = actual.unwrap_or_else(|| panic!("{file} is none, or stands there twice"));
        check_size(file, size, actual);
        let room = file.trim_start_matches("src/").trim_end_matches(".rs");
        let room = room.trim_end_matches("/mod");
        assert_eq!(floors.get(room).map(String::as_str), Some(floor), "{file}");
    }
    assert!(sizes.is_empty(), "doc/source.md lacks {:?}", sizes.keys());
}

/// The path for auditors leads through rooms that are there, and says how much there is to read.
#[test]
fn the_readme_leads_auditors() {
    let readme = read("README.md");
    let path = between(&readme, "in the order to read it:\n\n", "\n\n");
    let sizes = sizes();
    for step in path.lines() {
        let (head, rooms) = step.split_once(" lines: ").expect(step);
        let (what, given) = head.rsplit_once(", ").expect(step);
        let mut total = 0;
        for file in rooms.split(' ').map(|room| room.trim_matches('`')) {
            total += sizes.get(file).unwrap_or_else(|| panic!("no {file}"));
        }
        check_size(what, given, total);
    }
    assert_eq!(path.lines().count(), 3, "{path}");
}

/// The table of crates names every one.
#[test]
fn the_table_knows_every_crate() {
    let page = read("doc/source.md");
    let cargo = read("Cargo.toml");
    let dependencies = between(&cargo, "[dependencies]", "\n[");
    for line in dependencies.lines() {
        if let Some((name, _)) = line.split_once(" = ") {
            let row = format!("| `{name}` |");
            assert!(page.contains(&row), "doc/source.md lacks {name}");
        }
    }
}

/// README is short enough to be read, and its floors are those of the rooms.
#[test]
fn the_readme_is_short() {
    let readme = read("README.md");
    let length = readme.lines().count();
    assert!(length <= 150, "{length} lines");
    let floors = floors();
    let rows = between(&readme, "| floor | rooms |", "\n\n");
    let mut rows_seen = 0;
    for row in rows.lines().skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        for room in cells[1]
            .split('`')
            .filter(|room| !room.contains(' ') && !room.is_empty())
        {
            let name = room.trim_end_matches('/');
            let floor = floors.get(name).map(String::as_str);
            assert_eq!(floor, Some(cells[0]), "{room} in README");
        }
        rows_seen += 1;
    }
    assert_eq!(rows_seen, 7, "{rows}");
}

/// The pages that people read.
const PAGES: [&str; 5] = [
    "README.md",
    "CHANGES.md",
    "doc/coming-from-buildbot.md",
    "doc/maintaining.md",
    "doc/source.md",
];

/// Whether a paragraph states what something takes: `0.4 ms`, `8 MB`, `12 MiB`.
fn has_figure(paragraph: &str) -> bool {
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    words.windows(2).any(|pair| {
        let is_number = pair[0].trim_start_matches('(').parse::<f64>().is_ok();
        let unit = pair[1].trim_matches(|c: char| !c.is_alphanumeric());
        is_number && ["ms", "MB", "MiB", "kB"].contains(&unit)
    })
}

/// The words behind `make`, and behind `ROWS=`, wherever a page names a command.
fn commands(text: &str) -> (Vec<&str>, Vec<&str>) {
    let mut targets = Vec::new();
    let mut groups = Vec::new();
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c == '`')
        .collect();
    for pair in words.windows(2) {
        let is_target = !pair[1].is_empty() && !pair[1].contains(['=', '\u{2026}']);
        let is_command = pair[0] == "make" && is_target;
        if is_command {
            targets.push(pair[1].trim_end_matches(['.', ',', ':', ';', ')']));
        }
        if let Some(rows) = pair[1].strip_prefix("ROWS=") {
            groups.extend(rows.trim_end_matches(['.', ',', ':']).split(','));
        }
    }
    (targets, groups)
}

/// A figure has the command that makes it beside it, and that command is there.
#[test]
fn the_commands_behind_figures_exist() {
    let makefile = read("Makefile");
    let rows = read("tests/bench/rows/mod.rs");
    let mut figures = 0;
    for page in PAGES {
        let text = read(page);
        let paragraphs: Vec<&str> = text.split("\n\n").collect();
        for (at, paragraph) in paragraphs.iter().enumerate() {
            // Where a list has the figures, the paragraph behind it says how they were made.
            let next = paragraphs.get(at + 1).copied().unwrap_or("");
            let is_named = [*paragraph, next]
                .iter()
                .any(|text| !commands(text).0.is_empty());
            figures += usize::from(has_figure(paragraph));
            assert!(
                !has_figure(paragraph) || is_named,
                "{page}: which command makes the figures of\n{paragraph}"
            );
        }
        // What stands in code is meant to be typed.
        for code in text.split('`').skip(1).step_by(2) {
            let (targets, groups) = commands(code);
            for target in targets {
                let is_there = makefile
                    .lines()
                    .any(|line| line.starts_with(&format!("{target}:")));
                assert!(is_there, "{page}: there is no `make {target}`");
            }
            for group in groups {
                let is_there = rows.contains(&format!("(\"{group}\", "));
                assert!(is_there, "{page}: `make bench` has no rows {group}");
            }
        }
    }
    assert!(figures >= 3, "only {figures} figures were found");
}

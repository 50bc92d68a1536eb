//! The manual pages, `--help`, bot.conf.example and README agree.

mod common;

use common::{Bot, root, scratch, tool};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");
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

/// The keys of each section of bot.conf.example.
fn keys_of_the_example() -> BTreeSet<String> {
    let (mut section, mut keys) = (String::new(), BTreeSet::new());
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
    let (mut sections, mut keys) = (Vec::new(), BTreeSet::new());
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
    let (example, manual) = (keys_of_the_example(), keys_of_the_manual());
    let missing: Vec<_> = example.difference(&manual).collect();
    let surplus: Vec<_> = manual.difference(&example).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "bot.conf(5) lacks {missing:?}, and has {surplus:?}"
    );
}

/// A default that the example states for a flag, a number or a time stands in the manual, too.
#[test]
fn the_manual_knows_the_defaults() {
    let (manual, example) = (page("doc/bot.conf.5"), read("bot.conf.example"));
    for (key, stated, told) in [
        ("poll_interval", "15", "15 seconds."),
        ("event_stream", "yes", "open: yes."),
        ("timeout", "30", "30 seconds."),
        ("port", "6667", "6667, or 6697 with use_ssl."),
        ("use_ssl", "no", "at least: no."),
        ("nickserv", "NickServ", "goes to: NickServ."),
        ("sasl", "no", "no (the default)"),
        ("ping_timeout", "150", "150 seconds."),
        ("pacing", "yes", "flooding: yes."),
        ("allow_force", "no", "builds: no."),
        ("notice_on_channel", "no", "NOTICEs: no."),
        ("use_colors", "no", "colour: no."),
        ("use_revisions", "no", "build: no."),
        ("show_blame_list", "yes", "wrong: yes."),
        ("catch_up", "1h", "itself: 1 hour."),
    ] {
        assert!(
            example.contains(&format!("\n#{key} = {stated}\n")),
            "bot.conf.example: {key} is not {stated}"
        );
        // The item and what is indented below it.
        let mut lines = manual
            .lines()
            .skip_while(|line| line.split_whitespace().next() != Some(key));
        let first = lines
            .next()
            .unwrap_or_else(|| panic!("no {key} in bot.conf(5)"));
        let rest = lines.take_while(|line| line.starts_with("             "));
        let text = [first]
            .into_iter()
            .chain(rest)
            .flat_map(str::split_whitespace)
            .collect::<Vec<_>>()
            .join(" ");
        assert!(
            text.contains(told),
            "bot.conf(5) does not say `{told}`: {text}"
        );
    }
}

#[test]
fn the_options_are_in_the_manual_and_in_the_readme() {
    let help = Bot::run(&scratch("docs"), BOT, &["--help"], "").stdout;
    let (manual, readme) = (read("doc/buildbot-irc.1"), read("README.md"));
    let synopsis = manual.split(".Sh DESCRIPTION").next().unwrap();
    let usage: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("    buildbot-irc ["))
        .collect();
    let mut options = 0;
    for line in help.lines().filter(|line| line.contains(" --")) {
        let (short, long) = line.split_once("--").unwrap();
        let short = short
            .trim()
            .trim_start_matches('-')
            .trim_end_matches(',')
            .trim();
        let long = long.split_whitespace().next().unwrap();
        options += 1;
        assert!(
            manual.contains(&format!(".It Fl {short} , Fl -{long}")),
            "buildbot-irc(1) lacks -{short}, --{long}"
        );
        let there = synopsis.lines().any(|line| {
            let mut words = line
                .split([' ', '|', '.'])
                .skip_while(|word| *word != "Fl")
                .skip(1);
            words.any(|word| word == short)
        });
        assert!(there, "the synopsis of buildbot-irc(1) lacks -{short}");
        if !["help", "version"].contains(&long) {
            let flag = format!("-{short}");
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
    let section = manual
        .split(".Sh EXIT STATUS")
        .nth(1)
        .unwrap()
        .split(".Sh ")
        .next()
        .unwrap();
    let codes: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix(".It "))
        .collect();
    assert_eq!(codes, CODES);
    let readme = read("README.md");
    let rows = readme
        .lines()
        .skip_while(|line| !line.starts_with("| exit code"))
        .skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    let told = rows
        .iter()
        .flat_map(|row| row.split('|').nth(1).unwrap().split(',').map(str::trim));
    assert_eq!(told.collect::<Vec<_>>(), CODES);
}

/// Every command that the program knows is in the manual, and in README.
#[test]
fn the_commands_are_in_the_manual_and_in_the_readme() {
    let dir = scratch("docs");
    fs::write(
        dir.join("bot.conf"),
        "[buildbot]\nurl = http://127.0.0.1:1/\n",
    )
    .unwrap();
    let done = Bot::run(&dir, BOT, &["-x", "commands"], "");
    let names: Vec<&str> = done
        .stdout
        .trim()
        .strip_prefix("commands: ")
        .expect("a list")
        .split(' ')
        .collect();
    let (manual, readme) = (page("doc/buildbot-irc.1"), read("README.md"));
    let manual = manual
        .split("\nCOMMANDS")
        .nth(1)
        .unwrap()
        .split("\nSIGNALS")
        .next()
        .unwrap()
        .to_string();
    let table = readme
        .split("## Commands")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    for name in names {
        let is = |text: &str| {
            text.split(|c: char| !c.is_alphanumeric())
                .any(|word| word == name)
        };
        assert!(
            is(&manual) && is(table),
            "{name} is not in buildbot-irc(1), or not in README"
        );
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

/// README's map names every source file, its table every crate; the manual that is installed is named, too.
#[test]
fn the_readme_knows_every_file_and_every_crate() {
    let readme = read("README.md");
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            let name = entry
                .strip_prefix(root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_string();
            match entry.is_dir() {
                true => folders.push(entry),
                false if !name.ends_with(".rs") => {}
                false => assert!(
                    readme.contains(&format!("| `{name}` |")),
                    "README's map lacks {name}"
                ),
            }
        }
    }
    for file in readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `src/")?.split('`').next())
    {
        assert!(
            root().join("src").join(file).exists(),
            "README's map has src/{file}"
        );
    }
    let cargo = read("Cargo.toml");
    let crates = cargo
        .split("[dependencies]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    for line in crates.lines().filter(|line| line.contains(" = ")) {
        let name = line.split(" = ").next().unwrap();
        assert!(
            readme.contains(&format!("| `{name}` |")),
            "README's table of dependencies lacks {name}"
        );
    }
}

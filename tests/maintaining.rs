//! doc/maintaining.md names what is there, and what it says of commands and events holds.

mod common;

use common::{Bot, NO_MASTER, execute, root, scratch};
use std::collections::BTreeSet;
use std::fs;

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Whether a source file defines a name.
fn defines(source: &str, name: &str) -> bool {
    let kinds = [
        "fn ", "const ", "static ", "enum ", "struct ", "type ", "trait ",
    ];
    let ends = ['(', '<', ':', ' ', ';'];
    kinds.iter().any(|kind| {
        let definition = format!("{kind}{name}");
        let mut places = source.match_indices(&definition);
        places.any(|(at, _)| source[at + definition.len()..].starts_with(ends))
    })
}

/// What stands between single backquotes in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// A file that is named with its folder, or stands at the top; a glance is enough to tell it from a name.
fn is_file_name(word: &str) -> bool {
    word.contains('/') || word.contains('.')
}

/// The file that each name has to be in: the nearest before it, or where ` in ` or ` of ` follows, the one after it.
#[test]
fn everything_that_the_page_names_is_there() {
    let page = read("doc/maintaining.md");
    let makefile = read("Makefile");
    let mut errors = Vec::new();
    let mut names = 0;
    for block in page.split("\n\n") {
        // Lines are wrapped between words.
        let block = block.replace("\n   ", " ").replace('\n', " ");
        let words: Vec<&str> = quoted(&block).collect();
        let gaps: Vec<&str> = block.split('`').step_by(2).collect();
        let mut file = "";
        for (i, word) in words.iter().enumerate() {
            let own_name = ["tests.rs", "DEBFULLNAME", "DEBEMAIL", "make"];
            if own_name.contains(word) {
                continue;
            }
            names += 1;
            if let Some(target) = word.strip_prefix("make ") {
                if !makefile.contains(&format!("\n{target}:")) {
                    errors.push(format!("no target {target} in the Makefile"));
                }
            } else if is_file_name(word) {
                file = word.trim_end_matches('/');
                if !root().join(file).exists() {
                    errors.push(format!("no file {file}"));
                }
            } else {
                let place = place_of(i, &words, &gaps).unwrap_or(file);
                let is_source = place.ends_with(".rs");
                if !is_source || !defines(&read(place), word) {
                    errors.push(format!("no {word} in {place}"));
                }
            }
        }
    }
    assert!(errors.is_empty(), "doc/maintaining.md: {errors:#?}");
    assert!(names > 100, "only {names} names were found");
}

/// The file behind a name, where the page says `name` in `file`.
fn place_of<'a>(i: usize, words: &[&'a str], gaps: &[&str]) -> Option<&'a str> {
    let next = words.get(i + 1)?;
    let says_where = [" in ", " of "].contains(&gaps[i + 1]);
    (says_where && is_file_name(next)).then_some(next)
}

/// The keys of `[authorization]` in the example, which are commands but for `default`.
fn keys_of_commands() -> BTreeSet<String> {
    let example = Bot::run(&scratch("maintaining"), &["--print-config"]).stdout;
    let section = example.split("[authorization]\n").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let settings = section.lines().filter_map(|line| line.split_once(" = "));
    let keys = settings.map(|(key, _)| key.trim_start_matches('#').to_string());
    keys.filter(|key| key != "default" && !key.starts_with(' '))
        .collect()
}

/// The keys are those that the parser knows: a unit test of the configuration sees to that.
#[test]
fn every_command_has_a_key_and_help() {
    let line = execute(NO_MASTER, "", "commands").stdout;
    let names = line.trim().strip_prefix("commands: ").expect("a list");
    let commands: BTreeSet<String> = names.split(' ').map(str::to_string).collect();
    assert_eq!(commands, keys_of_commands(), "commands, and keys");
    let mut helped = BTreeSet::new();
    for line in read("src/commands/help.txt").lines() {
        let name = line.split([' ', ':']).next().unwrap();
        helped.insert(name.to_string());
    }
    assert_eq!(commands, helped, "commands, and lines of help.txt");
}

/// The names of all events, in the order of their bits.
fn event_names(source: &str) -> Vec<&str> {
    let list = source.split("const NAMES: ").nth(1).unwrap();
    let list = list.split("];").next().unwrap();
    list.split('"').skip(1).step_by(2).collect()
}

/// The compiler sees to it that each has a bit.
#[test]
fn every_event_has_a_name() {
    let source = read("src/notify_events.rs");
    let variants = source.split("pub enum Event {").nth(1).unwrap();
    let variants = variants.split('}').next().unwrap().lines().map(str::trim);
    let variants = variants.filter_map(|line| line.strip_suffix(','));
    let variants = variants.filter(|line| !line.starts_with("Transition"));
    let variants: BTreeSet<String> = variants.map(str::to_lowercase).collect();
    let names = event_names(&source).into_iter();
    let names = names.filter(|name| !name.contains("To"));
    let names: BTreeSet<String> = names.map(str::to_string).collect();
    assert_eq!(names, variants);
}

#[test]
fn every_event_is_documented() {
    let source = read("src/notify_events.rs");
    let events = event_names(&source);
    assert!(events.contains(&"successToFailure"), "{events:?}");
    for file in [
        "src/commands/help.txt",
        "bot.conf.example",
        "doc/bot.conf.5",
        "README.md",
    ] {
        let text = read(file);
        // Of transitions, one stands for all.
        let named = events.iter().filter(|name| !name.contains("To"));
        for name in named.chain(["successToFailure"].iter()) {
            let mut words = text.split(|c: char| !c.is_alphanumeric());
            assert!(words.any(|word| word == *name), "{file} lacks {name}");
        }
    }
}

//! INI: lines to sections and keys. What they mean is no matter here.

use super::error::ErrorKind;
use super::keys;
use crate::names::Casemapping;

/// `[name label]`, with the keys below it.
#[derive(Debug)]
pub struct Section<'a> {
    pub name: &'a str,
    pub label: &'a str,
    pub line: usize,
    pub keys: Vec<Key<'a>>,
    /// There was one of this name before, which is an error already.
    pub is_repeated: bool,
}

/// `name = value`
#[derive(Debug)]
pub struct Key<'a> {
    pub name: &'a str,
    pub value: &'a str,
    pub line: usize,
}

/// Cuts a text into sections. What is wrong goes to `errors`, with its line counted from 1.
pub fn parse<'a>(text: &'a str, errors: &mut Vec<(usize, ErrorKind)>) -> Vec<Section<'a>> {
    let mut sections = Vec::new();
    // Some editors put a byte order mark in front.
    let lines = text.trim_start_matches('\u{feff}').lines();
    for (line, text) in (1..).zip(lines) {
        if let Err(error) = parse_line(text.trim(), line, &mut sections) {
            errors.push((line, error));
        }
    }
    sections
}

fn parse_line<'a>(
    text: &'a str,
    line: usize,
    sections: &mut Vec<Section<'a>>,
) -> Result<(), ErrorKind> {
    if text.is_empty() || text.starts_with(['#', ';']) {
        return Ok(());
    }
    if text.contains(char::is_control) {
        let why = "a control character has no place here";
        return Err(ErrorKind::Syntax(why));
    }
    match text.strip_prefix('[') {
        Some(header) => parse_header(header, line, sections),
        None => parse_key(text, line, sections),
    }
}

fn parse_header<'a>(
    text: &'a str,
    line: usize,
    sections: &mut Vec<Section<'a>>,
) -> Result<(), ErrorKind> {
    let unclosed = ErrorKind::Syntax("a section header ends with ]");
    let header = text.strip_suffix(']').ok_or(unclosed)?.trim();
    let (name, label) = header.split_once(' ').unwrap_or((header, ""));
    let label = label.trim();
    // Which casemapping the server has is not known yet: what could be one channel is one.
    let folded = Casemapping::Rfc1459.fold(label);
    let same = |s: &&Section| s.name == name && Casemapping::Rfc1459.fold(s.label) == folded;
    let first_line = sections.iter().find(same).map(|section| section.line);
    sections.push(Section {
        name,
        label,
        line,
        keys: Vec::new(),
        is_repeated: first_line.is_some(),
    });
    match first_line {
        None => Ok(()),
        Some(first_line) => Err(ErrorKind::RepeatedSection {
            header: header.to_owned(),
            first_line,
        }),
    }
}

fn parse_key<'a>(
    text: &'a str,
    line: usize,
    sections: &mut [Section<'a>],
) -> Result<(), ErrorKind> {
    let expected = ErrorKind::Syntax("expected `key = value`, a [section] or a # comment");
    let (name, value) = text.split_once('=').ok_or(expected)?;
    let name = name.trim();
    let value = value.trim();
    let Some(section) = sections.last_mut() else {
        return Err(ErrorKind::KeyOutsideSection(name.to_owned()));
    };
    // A password and its file set the same thing, as do the two names of one key.
    let same = |key: &&Key| keys::is_same(section.name, key.name, name);
    if let Some(first) = section.keys.iter().find(same) {
        return Err(ErrorKind::RepeatedKey {
            key: first.name.to_owned(),
            first_line: first.line,
        });
    }
    section.keys.push(Key { name, value, line });
    Ok(())
}

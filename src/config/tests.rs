//! Tests of the configuration.

use super::values::{Value, ValueError};
use super::*;
use crate::fuzz::fuzz;
use std::collections::BTreeSet;

/// Parses as `bot.conf`, with one file `there` that holds `hidden`.
pub fn parse(text: &str) -> Result<Config, Vec<String>> {
    let read = |path: &str| match path {
        "there" => Ok(b"hidden\nsecond\n".to_vec()),
        _ => Err("No such file".into()),
    };
    let sentences = |errors: Vec<ConfigError>| errors.iter().map(ConfigError::to_string).collect();
    Config::parse("bot.conf", text, &read).map_err(sentences)
}

/// The shortest useful configuration.
pub const SHORT: &str = "[buildbot]\nurl = http://m:8010/\n[irc]\nhost = irc\nnick = bot\n";

#[test]
fn the_shortest_configuration_has_the_documented_defaults() {
    let c = parse(&format!("{SHORT}[channel #dev]\n")).unwrap();
    let irc = c.irc.unwrap();
    assert_eq!((irc.port, irc.use_ssl, irc.sasl), (6667, false, Sasl::No));
    assert_eq!(
        (irc.nickserv.as_str(), irc.account.as_str()),
        ("NickServ", "bot")
    );
    assert_eq!(irc.ping_timeout, Duration::from_secs(150));
    assert_eq!(
        (irc.channels[0].name.as_str(), irc.defaults.blame),
        ("#dev", true)
    );
    assert_eq!(c.buildbot.poll_interval, Duration::from_secs(15));
    assert_eq!(c.catch_up, Duration::from_secs(3600));
    assert_eq!(c.authorization.who_may("force"), [Who::Nobody]);
    assert_eq!(c.authorization.who_may("status"), [Who::Everyone]);
    assert_eq!(irc.pacing, Pacing::Auto);
    assert_eq!(c.warnings, [""; 0]);
}

#[test]
fn channels_inherit_and_override() {
    let c = parse(&format!(
        "{SHORT}notify_events = failure problem\nuse_colors = on\n\
         [channel #a]\npassword = k\n[channel #b]\nnotify_events = worker\nuse_colors=0\nbuilders = a* \"b c\"\n"
    ));
    let irc = c.unwrap().irc.unwrap();
    assert_eq!(
        irc.channels[0].settings.events,
        EventSet::parse("failure problem").unwrap()
    );
    assert_eq!(irc.channels[0].key, Some(Secret("k".into())));
    let b = &irc.channels[1].settings;
    assert_eq!(
        (&b.events, b.colors),
        (&EventSet::parse("worker").unwrap(), false)
    );
    let patterns: Vec<&str> = b.builders.patterns().collect();
    assert_eq!(patterns, ["a*", "b c"]);
}

#[test]
fn every_error_is_reported_with_its_line() {
    let text = "key = 1\n[buildbot]\nurl = ftp://x\nuser = u\npol_interval = 3\n[irc]\nhost = a\nhost = b\n\
                nick = 9lives\nport = 0\nuse_ssl = maybe\nsasl = plain\nnotify_events = failed\n\
                tls_ca_file = gone\n[channel dev]\n[authorization]\nforce = joe account:x mask:y\n[what]\nx=y\nnonsense\n[bot\n\
                [channel #A]\n[channel #a]\nuse_colors = \u{7}\n[bot]\ncatch_up = 1 week\n";
    let errors = parse(text).unwrap_err();
    let expected = [
        "bot.conf:1: `key` stands before the first [section]",
        "bot.conf:2: `user` and `password` need each other",
        "bot.conf:3: `url`: `ftp://x` does not begin with http:// or https://",
        "bot.conf:5: `pol_interval`: no such key in [buildbot]; did you mean `poll_interval`?",
        "bot.conf:6: `sasl = plain` needs `password` or `password_file`",
        "bot.conf:8: `host` was given before, in line 7",
        "bot.conf:9: `nick`: `9lives` cannot be a nick",
        "bot.conf:10: `port`: `0` is not a port from 1 to 65535",
        "bot.conf:11: `use_ssl`: `maybe` is neither yes nor no",
        "bot.conf:13: `notify_events`: unknown event `failed`; did you mean `failure`?",
        "bot.conf:14: `tls_ca_file`: gone: No such file",
        "bot.conf:15: a channel's section is written [channel #name]",
        "bot.conf:17: `force`: `joe` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST (a nick alone proves nothing)",
        "bot.conf:18: unknown section [what]",
        "bot.conf:20: expected `key = value`, a [section] or a # comment",
        "bot.conf:21: a section header ends with ]",
        "bot.conf:23: [channel #a] was there before, in line 22",
        "bot.conf:24: a control character has no place here",
        "bot.conf:26: `catch_up`: `1 week` is not a duration like 90, 15s, 10m, 2h or 1d",
    ];
    assert_eq!(errors, expected);
    let again = "[buildbot]\nurl = http://m\n[irc]\nhost = a\nnick = b\npassword_file = there\npassword = c\n[irc]\n\
                 [authorization]\nforce = nobody everyone\nstop = account:a, op\n[channel #a]\nbuilders = a, b\n[bot]\ncatch_up = 2h # or so\n";
    let expected = [
        "bot.conf:7: `password_file` was given before, in line 6",
        "bot.conf:8: [irc] was there before, in line 3",
        "bot.conf:10: `force`: `everyone` and `nobody` stand alone",
        "bot.conf:11: `stop`: a list is separated by blanks, without commas",
        "bot.conf:13: `builders`: a list is separated by blanks, without commas",
        "bot.conf:15: `catch_up`: `2h # or so` is not a duration like 90, 15s, 10m, 2h or 1d (a comment stands on its own line)",
    ];
    assert_eq!(parse(again).unwrap_err(), expected);
    assert_eq!(
        parse("").unwrap_err(),
        ["bot.conf: a section [buildbot] with `url` is needed"]
    );
}

#[test]
fn secrets_come_from_files_too_and_are_never_shown() {
    let c = parse(&format!("{SHORT}sasl = plain\npassword_file = there\n")).unwrap();
    assert!(!c.has_secret);
    let irc = c.irc.unwrap();
    assert_eq!(irc.password, Some(Secret("hidden".into())));
    assert!(!format!("{irc:?}").contains("hidden"));
    assert!(
        parse(&format!("{SHORT}password = x # y ; z\n"))
            .unwrap()
            .has_secret
    );
}

#[test]
fn addresses() {
    fn url(text: &str) -> Result<Url, ValueError> {
        let read = &|_: &str| Err("no file".to_owned());
        Value { text, read }.url()
    }
    let ok = |v| url(v).map(|u| (u.https, u.host, u.port, u.path)).unwrap();
    assert_eq!(ok("http://h"), (false, "h".into(), 80, "".into()));
    assert_eq!(ok("https://h/a/b/"), (true, "h".into(), 443, "/a/b".into()));
    assert_eq!(
        ok("https://[::1]:8010/"),
        (true, "::1".into(), 8010, "".into())
    );
    assert_eq!(
        url("https://[::1]:8010/x/").unwrap().to_string(),
        "https://[::1]:8010/x/"
    );
    for bad in [
        "h",
        "http://",
        "http://[::1]x:9/",
        "http://[::1]99/",
        "http://u@h/",
        "http://h/?x",
        "http://h:x/",
        "http://h/\u{e9}",
    ] {
        assert!(url(bad).is_err(), "{bad}");
    }
    assert!(
        !url("http://u:secret@h/")
            .unwrap_err()
            .to_string()
            .contains("secret")
    );
}

#[test]
fn who_may_what() {
    let c = parse(&format!("{SHORT}allow_force = yes\n")).unwrap();
    assert_eq!(c.authorization.who_may("force"), [Who::Everyone]);
    assert_eq!(c.authorization.who_may("stop"), [Who::Everyone]);
    let rules = |lines: &str| {
        let text = format!("{SHORT}[authorization]\n{lines}");
        parse(&text).unwrap()
    };
    let c = rules("force = op account:joe mask:*!*@*.example.org\nmute = op\n");
    let expected = [
        Who::Op,
        Who::Account("joe".into()),
        Who::Mask("*!*@*.example.org".into()),
    ];
    assert_eq!(c.authorization.who_may("force"), expected);
    assert_eq!(c.authorization.who_may("unmute"), [Who::Op]);
    assert_eq!(c.authorization.who_may("notify"), [Who::Everyone]);
    let c = rules("mute = op\nunmute = everyone\ndefault = account:joe\n");
    assert_eq!(c.authorization.who_may("unmute"), [Who::Everyone]);
    for command in ["force", "stop", "status"] {
        let joe = [Who::Account("joe".into())];
        assert_eq!(c.authorization.who_may(command), joe, "{command}");
    }
    assert_eq!(c.warnings, [""; 0]);
    let c = rules("stop = op\ndefault = everyone\n");
    let warning = "bot.conf:8: `default = everyone` lets everyone use force join leave";
    assert_eq!(c.warnings, [warning]);
}

#[test]
fn new_values_and_their_errors() {
    let c = parse(&format!(
        "{SHORT}identify = AUTH {{account}} {{password}}\npacing = safe\nbuilders = * !*nightly*\n"
    ));
    let irc = c.unwrap().irc.unwrap();
    assert_eq!(irc.identify.as_deref(), Some("AUTH {account} {password}"));
    assert_eq!(irc.pacing, Pacing::Safe);
    assert!(irc.defaults.builders.passes("linux"));
    assert!(!irc.defaults.builders.passes("nightly-linux"));
    for (line, error) in [
        (
            "identify = LOGIN {user}",
            "`identify`: unknown placeholder {user}; there are {account} and {password}",
        ),
        (
            "pacing = fast",
            "`pacing`: `fast` is none of auto, safe, no",
        ),
        ("builders = ! a", "`builders`: `!` needs a name behind it"),
        ("builders = \"a", "`builders`: the quote \" is not closed"),
    ] {
        let errors = parse(&format!("{SHORT}{line}\n")).unwrap_err();
        assert_eq!(errors, [format!("bot.conf:6: {error}")]);
    }
    let comma = parse(&format!(
        "{SHORT}branches = main,dev\nnotify_events = none\n"
    ))
    .unwrap();
    let warning =
        "bot.conf:6: `branches`: a list is separated by blanks; a comma is a part of the name";
    assert_eq!(comma.warnings, [warning]);
    let homeless = parse(&format!("{SHORT}[channel #a]\npacing = safe\n")).unwrap_err();
    let why = "bot.conf:7: `pacing`: no such key in [channel]; it belongs in [irc]";
    assert_eq!(homeless, [why]);
    let host = parse("[buildbot]\nurl = http://m\n[irc]\nhost = [::1]\nnick = b\n");
    assert_eq!(host.unwrap().irc.unwrap().host, "::1");
    for wrong in ["[::1]:6667", "[::1", "[]"] {
        let text = format!("[buildbot]\nurl = http://m\n[irc]\nhost = {wrong}\nnick = b\n");
        let why = format!("bot.conf:4: `host`: `{wrong}` is no host; a port goes into `port`");
        assert_eq!(parse(&text).unwrap_err(), [why]);
    }
    let proxy = "[buildbot]\nurl = http://m\nproxy_user = u\n";
    let why = "bot.conf:1: `proxy_user` and `proxy_password` need each other";
    assert_eq!(parse(proxy).unwrap_err(), [why]);
}

#[test]
fn people_and_what_they_hear() {
    let text = format!(
        "{SHORT}announce = changes\nbranches = main !old\n[channel #a]\npm_blamed = yes\nannounce = builds\n\
         [nicks]\nAnn@Example.org = annie\nJoe Example = joe\n"
    );
    let c = parse(&text).unwrap();
    let irc = c.irc.unwrap();
    assert_eq!(irc.defaults.announce, Announce::Changes);
    let channel = &irc.channels[0].settings;
    assert_eq!(
        (channel.announce, channel.pm_blamed),
        (Announce::Builds, true)
    );
    assert!(channel.branches.passes("main") && !channel.branches.passes("pr"));
    for (author, nick) in [
        ("Ann <ann@example.ORG>", Some("annie")),
        ("<ann@example.org>", Some("annie")),
        ("ann@example.org", Some("annie")),
        ("joe example", Some("joe")),
        ("Joe Example <j@x>", Some("joe")),
        ("Joe", None),
        ("<>", None),
        ("", None),
        ("\u{3}04Joe Example", None),
    ] {
        assert_eq!(c.nicks.of(author), nick, "{author:?}");
    }
    for (lines, error) in [
        (
            "[nicks]\nAnn = a\nann = b",
            "bot.conf:8: `Ann` was given before, in line 7",
        ),
        (
            "[nicks]\nAnn = 4nn",
            "bot.conf:7: `Ann`: `4nn` cannot be a nick",
        ),
        ("[nicks]\nAnn = ", "bot.conf:7: `Ann`: needs a value"),
        (
            "announce = all",
            "bot.conf:6: `announce`: `all` is none of builds, changes",
        ),
        (
            "branches = !",
            "bot.conf:6: `branches`: `!` needs a name behind it",
        ),
    ] {
        assert_eq!(parse(&format!("{SHORT}{lines}\n")).unwrap_err(), [error]);
    }
}

/// The example is the manual: it names every key that the parser knows, and only those, and
/// each default in it is the parser's.
#[test]
fn the_example_and_the_parser_agree() {
    let example = EXAMPLE;
    let mut named = BTreeSet::new();
    let mut section = String::new();
    // `#key = value` is a setting, `# text` is prose.
    for line in example.lines().map(|l| l.strip_prefix('#').unwrap_or(l)) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.split([' ', ']']).next().unwrap().to_owned();
        } else if !line.starts_with(' ')
            && let Some((key, _)) = line.split_once(" = ")
        {
            named.insert((section.clone(), key.to_owned()));
        }
    }
    for section in keys::SECTIONS {
        for key in keys::names(section) {
            let is_named = named.contains(&(section.to_owned(), key.to_owned()));
            assert!(is_named, "[{section}] `{key}` is not in the example");
        }
    }
    // The keys of [nicks] are people.
    for (section, key) in named.iter().filter(|(section, _)| section != "nicks") {
        let is_known = keys::names(section).any(|known| known == key);
        assert!(is_known, "[{section}] `{key}` is no key");
    }
    parse(example).expect("the example as it stands is a valid configuration");
    // Spelled out, the defaults that it states change nothing.
    let mut spelled = String::new();
    let mut example_only = false;
    for line in example.lines() {
        match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') && !example_only => spelled += setting,
            Some(setting) if setting.starts_with(' ') => {
                example_only = setting.ends_with("No default.")
            }
            _ => spelled += line,
        }
        spelled += "\n";
        example_only &= line.starts_with("# ");
    }
    let mut stated = parse(&spelled).expect("the defaults as spelled out are valid");
    let usual = parse(example).unwrap().authorization;
    for command in COMMANDS {
        assert_eq!(
            stated.authorization.who_may(command),
            usual.who_may(command)
        );
    }
    stated.authorization = parse(example).unwrap().authorization;
    assert_eq!(
        stated,
        parse(example).unwrap(),
        "the example states a wrong default"
    );
}

#[test]
fn fuzz_config() {
    let seed = format!(
        "{SHORT}notify_events = failure\n[channel #x]\nbuilders = \"a b\"\n[authorization]\nforce = op\n"
    );
    fuzz(&[seed.as_bytes(), EXAMPLE.as_bytes()], |bytes, _| {
        if let Err(errors) = parse(&String::from_utf8_lossy(bytes)) {
            assert!(
                !errors.is_empty() && errors.iter().all(|e| e.starts_with("bot.conf:")),
                "{errors:?}"
            );
        }
    });
}

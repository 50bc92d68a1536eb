//! The pictures in doc/, and the script that draws them.

mod common;

use common::{root, scratch};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Reads a picture as XML, and checks what all of them have.
#[track_caller]
fn check(file: &Path) -> String {
    let name = file.display();
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{name}: {e}"));
    let parse = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";
    let mut python = Command::new("python3");
    python.args(["-c", parse]).arg(file);
    assert!(python.status().unwrap().success(), "{name} is no XML");
    assert!(text.len() <= 40_000, "{name}: {} bytes", text.len());
    for part in ["<title>", "@media(prefers-color-scheme:dark)", "commit "] {
        assert!(text.contains(part), "{name} has no {part}");
    }
    text
}

#[test]
fn the_pictures_are_small_and_say_where_they_come_from() {
    check(&root().join("doc/demo.svg"));
    check(&root().join("doc/bench.svg"));
}

#[test]
fn what_was_said_is_drawn_as_it_was_said() {
    let dir = scratch("pictures");
    let demo = r##"{
        "commit": "abc1234", "machine": {"cpu": "a CPU", "cores": 2, "kernel": "Linux"},
        "channel": "#demo", "bot": "buildbot", "lines": [
            {"told": "Bob commits."},
            {"said": "<bob> buildbot: last <app> & \"docs\""},
            {"said": "<buildbot> app #2 \u000304failure\u000f http://127.0.0.1:31398/#/builders/1"}
        ]
    }"##;
    fs::write(dir.join("demo.json"), demo).unwrap();
    let mut python = Command::new("python3");
    python.arg(root().join("tests/pictures.py"));
    let out = python.args([&dir, &dir]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).to_string();
    assert!(out.status.success(), "{out:?}");
    assert!(said.contains("bench.svg stays as it is"), "{said}");
    let picture = check(&dir.join("demo.svg"));
    for part in [
        ">Bob commits.<",
        "last &lt;app&gt; &amp; ",
        r#"<tspan class="red b">failure</tspan> https://ci.example.org/#/builders/1<"#,
        "commit abc1234, a CPU, 2 cores, Linux",
    ] {
        assert!(picture.contains(part), "no {part} in {picture}");
    }
}

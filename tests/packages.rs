//! What packagers and supervisors get: `make install`, the unit, cron, the static program, the tarball.

mod common;

use common::{
    Bot, Certificates, Client, Ear, Finished, Master, Ngircd, NgircdOptions, Process, SUCCESS,
    Worker, guarded, root, scratch, tool, wait_for,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).to_string();
    assert!(out.status.success(), "{command:?}: {}\n{text}", out.status);
    text
}

/// `make TARGET` with the program under test as what is to be installed.
fn make(target: &str, dir: &Path, more: &[&str]) {
    let values = [
        format!("DESTDIR={}", dir.display()),
        format!("BINARY={BOT}"),
    ];
    succeed(
        Command::new("make")
            .arg("-s")
            .arg(target)
            .args(values)
            .args(more)
            .current_dir(root()),
    );
}

/// All files below a directory, with their modes.
fn files(dir: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(format!(
                    "{mode:o} {}",
                    path.strip_prefix(dir).unwrap().display()
                )),
            }
        }
    }
    found.sort_by(|a, b| a[4..].cmp(&b[4..]));
    found
}

#[test]
fn install_and_uninstall() {
    let dir = scratch("destdir");
    make("install", &dir, &["PREFIX=/usr"]);
    let doc = "usr/share/doc/buildbot-irc";
    let installed = [
        "640 etc/buildbot-irc/bot.conf",
        "755 usr/bin/buildbot-irc",
        "644 usr/lib/systemd/system/buildbot-irc.service",
        &format!("644 {doc}/CHANGES.md"),
        &format!("644 {doc}/LICENSE"),
        &format!("644 {doc}/README.md"),
        &format!("644 {doc}/bot.conf.example"),
        &format!("644 {doc}/coming-from-buildbot.md"),
        "644 usr/share/man/man1/buildbot-irc.1",
        "644 usr/share/man/man5/bot.conf.5",
    ];
    assert_eq!(files(&dir), installed);
    let done = Bot::run(
        &dir,
        dir.join("usr/bin/buildbot-irc").to_str().unwrap(),
        &["-c", "etc/buildbot-irc/bot.conf", "-t"],
        "",
    );
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "etc/buildbot-irc/bot.conf: ok\n"),
        "{done:?}"
    );
    let unit = fs::read_to_string(dir.join("usr/lib/systemd/system/buildbot-irc.service")).unwrap();
    assert!(
        unit.contains("\nExecStart=/usr/bin/buildbot-irc ") && !unit.contains("/usr/local"),
        "{unit}"
    );

    // Again: a configuration that was changed stays, also its mode.
    let config = dir.join("etc/buildbot-irc/bot.conf");
    fs::write(&config, "mine\n").unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    make("install", &dir, &["PREFIX=/usr"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "mine\n");
    make("uninstall", &dir, &["PREFIX=/usr"]);
    assert_eq!(files(&dir), ["600 etc/buildbot-irc/bot.conf"]);
}

#[test]
fn the_unit_is_sound_and_closed() {
    // Verification wants the program to be there, and looks for nothing but what the unit names.
    let dir = scratch("unit");
    make(
        "install",
        &dir,
        &[
            &format!("PREFIX={}", dir.display()),
            "DESTDIR=",
            &format!("SYSCONFDIR={}/etc", dir.display()),
        ],
    );
    let unit = dir.join("lib/systemd/system/buildbot-irc.service");
    let text = fs::read_to_string(&unit).unwrap();
    assert!(
        text.contains(&format!("ExecStart={}/bin/buildbot-irc", dir.display())),
        "{text}"
    );
    assert!(
        text.contains(&format!(" {}/etc/buildbot-irc/bot.conf", dir.display())),
        "{text}"
    );
    let analyze = || Command::new(tool("systemd-analyze"));
    let said = succeed(analyze().args(["verify", "--man=no"]).arg(&unit));
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("buildbot-irc"))
        .collect();
    assert!(ours.is_empty(), "{}", ours.join("\n"));
    // In tenths.
    succeed(
        analyze()
            .args(["security", "--offline=yes", "--no-pager", "--threshold=15"])
            .arg(&unit),
    );
    for line in [
        "Type=notify",
        "Restart=on-failure",
        "RestartPreventExitStatus=64 78",
        "DynamicUser=yes",
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is not in the unit"
        );
    }
}

/// The unit's preparation, as root does it: the copy belongs to the owner of the directory, and nobody else reads it.
#[test]
fn the_unit_copies_the_configuration() {
    let dir = scratch("runtime");
    make(
        "install",
        &dir,
        &[
            "DESTDIR=",
            &format!("PREFIX={}", dir.display()),
            &format!("SYSCONFDIR={}/etc", dir.display()),
        ],
    );
    let unit = fs::read_to_string(dir.join("lib/systemd/system/buildbot-irc.service")).unwrap();
    let script = |key: &str| {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_else(|| panic!("no {key}"));
        line.strip_prefix("+/bin/sh -c '")
            .and_then(|line| line.strip_suffix('\''))
            .expect("a script")
            .to_string()
    };
    let run = dir.join("run");
    fs::create_dir(&run).unwrap();
    for (key, text) in [("ExecStartPre=", "first\n"), ("ExecReload=", "second\n")] {
        fs::write(dir.join("etc/buildbot-irc/bot.conf"), text).unwrap();
        succeed(
            Command::new("sh")
                .args(["-c", &script(key)])
                .env("RUNTIME_DIRECTORY", &run),
        );
        assert_eq!(files(&run), ["400 bot.conf"]);
        assert_eq!(fs::read_to_string(run.join("bot.conf")).unwrap(), text);
    }
}

/// The line of the manual, as cron runs it: what it prints becomes a mail.
#[test]
fn cron_mails_when_the_bot_has_died_and_never_else() {
    let manual = fs::read_to_string(root().join("doc/buildbot-irc.1")).unwrap();
    let line = manual
        .lines()
        .find_map(|line| line.strip_prefix("*/5 * * * * "))
        .expect("a crontab line");
    let line = line.replace("/usr/local/bin/buildbot-irc", BOT);
    let dir = scratch("cron");
    fs::write(
        dir.join("bot.conf"),
        "[buildbot]\nurl = http://127.0.0.1:1/\n[irc]\nhost = 127.0.0.1\nport = 1\nnick = bot\n",
    )
    .unwrap();
    let start = || {
        let mut command = guarded("sh");
        command.args(["-c", &line]).current_dir(&dir);
        Process::start("cron", command)
    };
    let pid = || {
        fs::read_to_string(dir.join("bot.lock"))
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let started = |before: &str, starts: usize| {
        wait_for("a process id in the lock", common::TIMEOUT, || {
            let log = fs::read_to_string(dir.join("bot.log")).unwrap_or_default();
            // By then it takes signals.
            let ready = log
                .lines()
                .filter(|line| line.contains("for http://127.0.0.1:1/"))
                .count()
                == starts;
            (ready && pid() != before && !pid().is_empty()).then(pid)
        })
    };
    let end = |job: &mut Process| wait_for("the end", common::TIMEOUT, || job.exited()).code();
    let kill = |signal: &str, pid: &str| drop(succeed(Command::new("kill").args([signal, pid])));

    let mut first = start();
    let number = started("", 1);
    let mut second = start();
    assert_eq!((end(&mut second), second.output().as_str()), (Some(0), ""));
    kill("-KILL", &number);
    assert_eq!(end(&mut first), Some(0));
    assert!(first.output().contains("IRC: "), "{}", first.output());

    let mut third = start();
    let number = started(&number, 2);
    kill("-TERM", &number);
    assert_eq!((end(&mut third), third.output().as_str()), (Some(0), ""));

    fs::write(dir.join("bot.conf"), "nonsense\n").unwrap();
    let mut fourth = start();
    assert_eq!(end(&mut fourth), Some(0));
    assert!(
        fourth
            .output()
            .contains("bot.conf:1: expected `key = value`"),
        "{}",
        fourth.output()
    );
}

/// The program of `make static`, alone in a directory that it takes for the whole file system.
struct Jail {
    dir: PathBuf,
}

impl Jail {
    fn new() -> Jail {
        let dir = scratch("jail");
        let host = succeed(Command::new("rustc").arg("-vV"));
        let host = host
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap();
        let program = root().join(format!("target/{host}/release/buildbot-irc"));
        fs::copy(&program, dir.join("buildbot-irc"))
            .unwrap_or_else(|e| panic!("{}: {e}; `make static` builds it", program.display()));
        Jail { dir }
    }

    /// A user who is not root needs a user namespace.
    fn command(&self) -> Command {
        let root = succeed(Command::new("id").arg("-u")).trim() == "0";
        let mut command = guarded(if root { "chroot" } else { "unshare" });
        command
            .args(if root { &[][..] } else { &["-r", "chroot"] })
            .arg(&self.dir)
            .arg("/buildbot-irc");
        command
    }

    fn run(&self, args: &[&str]) -> Finished {
        let out = self
            .command()
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
        Finished {
            code: out.status.code().unwrap_or(-1),
            stdout: text(&out.stdout),
            stderr: text(&out.stderr),
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.dir.join(name).parent().unwrap()).unwrap();
        fs::write(self.dir.join(name), text).unwrap();
    }
}

#[test]
#[ignore = "needs `make static`: see `make test-packages`"]
fn the_static_program_works_in_an_empty_chroot() {
    let jail = Jail::new();
    let done = jail.run(&["-V"]);
    assert!(
        done.code == 0 && done.stdout.starts_with("buildbot-irc "),
        "{done:?}"
    );

    // Names: without a file it asks the resolver of this host and gets nowhere; /etc/hosts is enough.
    let refused = "127.0.0.1:1: Connection refused (os error 111)\n";
    jail.write("bot.conf", "[buildbot]\nurl = http://master.test:1/\n");
    let done = jail.run(&["-x", "status"]);
    assert!(
        done.code == 69 && done.stderr.contains("master.test: name lookup: "),
        "{done:?}"
    );
    jail.write("etc/hosts", "127.0.0.1 master.test\n");
    let done = jail.run(&["-x", "status"]);
    assert!(
        done.code == 69 && done.stderr.ends_with(refused),
        "{done:?}"
    );

    // Real servers over TLS, with an authority that is in the jail.
    let irc = Ngircd::start(NgircdOptions {
        certificate: Some("server"),
        ..NgircdOptions::default()
    });
    let master = Master::start_tls("jail", "gated('app')");
    let _worker = Worker::start(&master, "w1");
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    jail.write(
        "ca.pem",
        &fs::read_to_string(Certificates::get().path("ca.pem")).unwrap(),
    );
    jail.write("bot.conf", &format!("[buildbot]\nurl = {}\n", master.url()));
    let done = jail.run(&["-x", "status"]);
    assert!(
        done.code == 69 && done.stderr.contains("certificate is refused"),
        "{done:?}"
    );
    jail.write(
        "bot.conf",
        &format!(
            "[buildbot]\nurl = {}\ntls_ca_file = /ca.pem\n[irc]\nhost = 127.0.0.1\nport = {}\nuse_ssl = yes\n\
             tls_ca_file = /ca.pem\nnick = bot\nnotify_events = finished\n[channel #lab]\n[bot]\nstate_file = /state\n\
             [authorization]\nforce = everyone\n",
            master.url(),
            irc.tls_port
        ),
    );
    let mut bot = Process::start("bot in jail", jail.command());
    joe.expect_within("JOIN :#lab", Duration::from_secs(30));
    let ear = Ear::new(&joe, "#lab");
    ear.ask_until("bot: status", "<bot> app: idle; no builds yet");
    joe.say("#lab", "bot: force build app why");
    ear.hear("<bot> forced app #1 *");
    master.release("app", SUCCESS);
    ear.hear("<bot> app #1 success*");
    assert_eq!(bot.terminate().code(), Some(0), "{}", bot.output());
    assert!(jail.dir.join("state").exists());
}

/// Built from the tarball without a network, by somebody else, elsewhere: the same bytes as here.
#[test]
#[ignore = "needs `make dist`: see `make test-packages`"]
fn the_tarball_builds_offline_and_to_the_same_bytes() {
    let name = concat!("buildbot-irc-", env!("CARGO_PKG_VERSION"));
    let dir = scratch("tarball");
    succeed(
        Command::new("tar")
            .arg("-xf")
            .arg(root().join(format!("target/{name}.tar.xz")))
            .arg("-C")
            .arg(&dir),
    );
    let rustup = succeed(Command::new("rustc").args(["--print", "sysroot"]));
    let mut build = Command::new("make");
    build
        .current_dir(dir.join(name))
        .env("CARGO_HOME", dir.join("empty"))
        .env("CARGO_NET_OFFLINE", "true");
    build
        .env("HOME", &dir)
        .env("RUSTUP_TOOLCHAIN", rustup.trim())
        .env_remove("CARGO_TARGET_DIR");
    succeed(&mut build);
    let [theirs, ours] = [dir.join(name), root().to_path_buf()]
        .map(|dir| fs::read(dir.join("target/release/buildbot-irc")).unwrap());
    assert!(
        theirs == ours,
        "the program from the tarball differs from target/release/buildbot-irc of {}",
        root().display()
    );
}

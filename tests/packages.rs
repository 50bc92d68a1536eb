//! What packagers and supervisors get: `make install`, the unit, cron, the static program, the tarball.

mod common;

use common::{
    Certificates, Finished, Lab, Listener, Master, NO_MASTER, NgircdOptions, Process, SUCCESS,
    binary, config_dir, guarded, root, run, scratch, tool, wait_for,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).to_string();
    assert!(out.status.success(), "{command:?}: {}\n{text}", out.status);
    text
}

/// `make TARGET` with the program under test as what is to be installed.
fn make(target: &str, dir: &Path, more: &[&str]) {
    let mut command = Command::new("make");
    command.args(["-s", target]).current_dir(root());
    command.arg(format!("DESTDIR={}", dir.display()));
    command.arg(format!("BINARY={}", binary()));
    succeed(command.args(more));
}

/// All files below a directory, with their modes.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let name = path.strip_prefix(dir).unwrap().display();
            found.push(format!("{mode:o} {name}"));
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
    let program = dir.join("usr/bin/buildbot-irc").display().to_string();
    let done = run(&program, &dir, &["-c", "etc/buildbot-irc/bot.conf", "-t"]);
    assert_eq!(done.stdout, "etc/buildbot-irc/bot.conf: ok\n", "{done:?}");
    assert_eq!(done.code, 0, "{done:?}");
    let unit = fs::read_to_string(dir.join("usr/lib/systemd/system/buildbot-irc.service")).unwrap();
    assert!(
        unit.contains("\nExecStart=/usr/bin/buildbot-irc "),
        "{unit}"
    );
    assert!(!unit.contains("/usr/local"), "{unit}");

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

/// The crontab line of the manual, for the program under test.
fn crontab_line() -> String {
    let manual = fs::read_to_string(root().join("doc/buildbot-irc.1")).unwrap();
    let mut lines = manual.lines();
    let line = lines.find_map(|line| line.strip_prefix("*/5 * * * * "));
    let line = line.expect("a crontab line");
    line.replace("/usr/local/bin/buildbot-irc", &binary())
}

/// A job of cron in a directory of its own.
struct Cron {
    dir: PathBuf,
    line: String,
}

impl Cron {
    fn start_job(&self) -> Process {
        let mut command = guarded("sh");
        command.args(["-c", &self.line]).current_dir(&self.dir);
        Process::start("cron", command)
    }

    /// The process id in the lock, which may be that of an earlier bot.
    fn holder(&self) -> String {
        let lock = fs::read_to_string(self.dir.join("bot.lock")).unwrap_or_default();
        lock.trim().to_string()
    }

    /// Waits until this many bots have started, the last with a process id other than `before`, which it returns.
    #[track_caller]
    fn wait_started(&self, before: &str, starts: usize) -> String {
        wait_for("a process id in the lock", common::TIMEOUT, || {
            let log = fs::read_to_string(self.dir.join("bot.log")).unwrap_or_default();
            // When it has logged this it takes signals.
            let ready = format!("for {NO_MASTER}");
            let lines = log.lines().filter(|line| line.contains(&ready));
            let holder = self.holder();
            let is_new = !holder.is_empty() && holder != before;
            (is_new && lines.count() == starts).then_some(holder)
        })
    }
}

/// The job ends with code 0; returns what it printed.
#[track_caller]
fn expect_end(mut job: Process) -> String {
    assert_eq!(job.wait_exit().code(), Some(0), "{}", job.output());
    job.output()
}

#[track_caller]
fn kill(signal: &str, pid: &str) {
    succeed(Command::new("kill").args([signal, pid]));
}

/// The line of the manual, as cron runs it: what it prints becomes a mail.
#[test]
fn cron_mails_when_the_bot_has_died_and_never_else() {
    let cron = Cron {
        dir: config_dir(&Lab::new().config("bot", "", "")),
        line: crontab_line(),
    };
    let first = cron.start_job();
    let killed = cron.wait_started("", 1);
    assert_eq!(expect_end(cron.start_job()), "");
    kill("-KILL", &killed);
    let mail = expect_end(first);
    // The end of the log, whichever thread has spoken last.
    let log = fs::read_to_string(cron.dir.join("bot.log")).unwrap();
    let last = log.lines().last().expect("a log");
    assert!(mail.contains(last), "{mail}\nof {log}");

    let job = cron.start_job();
    let stopped = cron.wait_started(&killed, 2);
    kill("-TERM", &stopped);
    assert_eq!(expect_end(job), "");

    fs::write(cron.dir.join("bot.conf"), "nonsense\n").unwrap();
    let mail = expect_end(cron.start_job());
    let error = "bot.conf:1: expected `key = value`";
    assert!(mail.contains(error), "{mail}");
}

/// The program of `make static`, alone in a directory that it takes for the whole file system.
struct Jail {
    dir: PathBuf,
}

impl Jail {
    fn new() -> Jail {
        let dir = scratch("jail");
        let host = succeed(Command::new("rustc").arg("-vV"));
        let mut lines = host.lines();
        let host = lines.find_map(|line| line.strip_prefix("host: ")).unwrap();
        let program = root().join(format!("target/{host}/release/buildbot-irc"));
        fs::copy(&program, dir.join("buildbot-irc"))
            .unwrap_or_else(|e| panic!("{}: {e}; `make static` builds it", program.display()));
        Jail { dir }
    }

    /// A user who is not root needs a user namespace.
    fn command(&self) -> Command {
        let is_root = succeed(Command::new("id").arg("-u")).trim() == "0";
        let mut command;
        if is_root {
            command = guarded("chroot");
        } else {
            command = guarded("unshare");
            command.args(["-r", "chroot"]);
        }
        command.arg(&self.dir).arg("/buildbot-irc");
        command
    }

    fn run(&self, args: &[&str]) -> Finished {
        let mut command = self.command();
        let out = command.args(args).stdin(Stdio::null()).output().unwrap();
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
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.starts_with("buildbot-irc "), "{done:?}");

    // Names: without a file it asks the resolver of this host and gets nowhere; /etc/hosts is enough.
    let refused = "127.0.0.1:1: Connection refused (os error 111)\n";
    jail.write("bot.conf", "[buildbot]\nurl = http://master.test:1/\n");
    let done = jail.run(&["-x", "status"]);
    assert_eq!(done.code, 69, "{done:?}");
    assert!(
        done.stderr.contains("master.test: name lookup: "),
        "{done:?}"
    );
    jail.write("etc/hosts", "127.0.0.1 master.test\n");
    let done = jail.run(&["-x", "status"]);
    assert_eq!(done.code, 69, "{done:?}");
    assert!(done.stderr.ends_with(refused), "{done:?}");

    // Real servers over TLS, with an authority that is in the jail.
    let mut lab = Lab::new()
        .with_running_master(Master::start_tls("jail", "gated('app')"))
        .with_worker("w1")
        .with_ngircd_options(NgircdOptions {
            certificate: Some("server"),
            ..NgircdOptions::default()
        });
    let joe = lab.person("joe", &["#lab"]);
    let master = lab.master_url.clone();
    let ca = fs::read_to_string(Certificates::get().path("ca.pem")).unwrap();
    jail.write("ca.pem", &ca);
    jail.write("bot.conf", &format!("[buildbot]\nurl = {master}\n"));
    let done = jail.run(&["-x", "status"]);
    assert_eq!(done.code, 69, "{done:?}");
    assert!(done.stderr.contains("certificate is refused"), "{done:?}");
    lab.irc_port = lab.ngircd().tls_port;
    let config = lab.config(
        "bot",
        "tls_ca_file = /ca.pem",
        "use_ssl = yes\ntls_ca_file = /ca.pem\nnotify_events = finished\n[channel #lab]\n[bot]\n\
         state_file = /state\n[authorization]\nforce = everyone",
    );
    jail.write("bot.conf", &config);
    let mut bot = Process::start("bot in jail", jail.command());
    joe.expect_within("JOIN :#lab", Duration::from_secs(30));
    let channel = Listener::new(&joe, "#lab");
    channel.ask_until("bot: status", "<bot> app: idle; no builds yet");
    channel.ask("bot: force build app why", "<bot> forced app #1 *");
    lab.master().release("app", SUCCESS);
    channel.hear("<bot> app #1 success*");
    assert_eq!(bot.terminate().code(), Some(0), "{}", bot.output());
    assert!(jail.dir.join("state").exists());
}

/// Built from the tarball without a network, by somebody else, elsewhere: the same bytes as here.
#[test]
#[ignore = "needs `make dist`: see `make test-packages`"]
fn the_tarball_builds_offline_and_to_the_same_bytes() {
    let name = concat!("buildbot-irc-", env!("CARGO_PKG_VERSION"));
    let dir = scratch("tarball");
    let tarball = root().join(format!("target/{name}.tar.xz"));
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(tarball).arg("-C").arg(&dir);
    succeed(&mut unpack);
    let toolchain = succeed(Command::new("rustc").args(["--print", "sysroot"]));
    let mut build = Command::new("make");
    build.current_dir(dir.join(name));
    build.env("CARGO_HOME", dir.join("empty"));
    build.env("CARGO_NET_OFFLINE", "true");
    build.env("HOME", &dir);
    build.env("RUSTUP_TOOLCHAIN", toolchain.trim());
    build.env_remove("CARGO_TARGET_DIR");
    succeed(&mut build);
    let [theirs, ours] = [dir.join(name), root().to_path_buf()]
        .map(|dir| fs::read(dir.join("target/release/buildbot-irc")).unwrap());
    assert!(
        theirs == ours,
        "the program from the tarball differs from target/release/buildbot-irc of {}",
        root().display()
    );
}

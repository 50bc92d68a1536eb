//! The Debian package: built twice to the same bytes, installed into a root of its own, started as the unit says,
//! and purged without a trace.

mod common;

use common::{Bot, Lab, Listener, Process, binary, guarded, root, scratch, tool};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).to_string();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{command:?}: {}\n{text}{errors}",
        out.status
    );
    text
}

/// A command that is root, at least in a user namespace of its own.
fn as_root(program: &str) -> Command {
    let is_root = succeed(Command::new("id").arg("-u")).trim() == "0";
    if is_root {
        return guarded(tool(program));
    }
    let mut command = guarded("unshare");
    command.arg("-r").arg(tool(program));
    command
}

/// The program under test without its symbols, which would take long to pack.
fn stripped() -> PathBuf {
    let file = scratch("stripped").join("buildbot-irc");
    succeed(
        Command::new(tool("strip"))
            .arg("-o")
            .arg(&file)
            .arg(binary()),
    );
    file
}

/// Makes the package from a program; returns its path.
fn build(program: &Path, umask: &str) -> PathBuf {
    let dir = scratch("deb");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask} && exec sh tests/deb.sh")]);
    command.current_dir(root());
    command.env("BINARY", program).env("OUTPUT", &dir);
    succeed(&mut command);
    let mut entries = fs::read_dir(dir).unwrap();
    entries.next().expect("a package").unwrap().path()
}

/// A file system with no more than what the package and its scripts need: packages of this machine, as it has them.
struct Root {
    dir: PathBuf,
}

impl Root {
    fn new(package: &Path) -> Root {
        let dir = scratch("root");
        for name in ["bin", "sbin", "lib", "lib64"] {
            let target = fs::read_link(Path::new("/").join(name));
            if let Ok(target) = target {
                fs::create_dir_all(dir.join(&target)).unwrap();
                symlink(target, dir.join(name)).unwrap();
            }
        }
        let packages = packages(package);
        let files = succeed(Command::new("dpkg").arg("-L").args(&packages));
        let mut files: BTreeSet<&str> = files.lines().collect();
        files.retain(|file| {
            let is_text = ["doc", "man", "locale", "info", "lintian"]
                .iter()
                .any(|name| file.starts_with(&format!("/usr/share/{name}/")));
            !is_text && (Path::new(file).is_file() || Path::new(file).is_symlink())
        });
        files.retain(|file| !dir.join(&file[1..]).is_symlink());
        let list: String = files.iter().map(|file| format!(".{file}\n")).collect();
        fs::write(dir.join("list"), list).unwrap();
        let copy =
            "tar -C / -c --no-recursion -T list | tar -x --keep-directory-symlink && rm list";
        succeed(Command::new("sh").args(["-c", copy]).current_dir(&dir));

        // A device only where we are root; for what is thrown away a file will do.
        fs::create_dir(dir.join("dev")).unwrap();
        fs::write(dir.join("dev/null"), "").unwrap();
        for name in ["info", "updates", "triggers"] {
            fs::create_dir_all(dir.join("var/lib/dpkg").join(name)).unwrap();
        }
        let status = succeed(Command::new("dpkg-query").arg("-s").args(&packages));
        fs::write(dir.join("var/lib/dpkg/status"), status).unwrap();
        Root { dir }
    }

    #[track_caller]
    fn dpkg(&self, args: &[&str]) -> String {
        let mut command = as_root("dpkg");
        command.arg(format!("--root={}", self.dir.display()));
        succeed(command.arg("--force-unsafe-io").args(args))
    }

    /// A command inside.
    fn command(&self, program: &str) -> Command {
        let mut command = as_root("chroot");
        command.arg(&self.dir).arg(program);
        command.env("RUNTIME_DIRECTORY", "/run/buildbot-irc");
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// All files and links, without dpkg's own.
    fn files(&self) -> BTreeSet<String> {
        let find = "find . -path ./var/lib/dpkg -prune -o ! -type d -print";
        let found = succeed(Command::new("sh").args(["-c", find]).current_dir(&self.dir));
        found.lines().map(str::to_string).collect()
    }

    /// The value of the unit's only line with this key.
    #[track_caller]
    fn unit(&self, key: &str) -> String {
        let unit = fs::read_to_string(self.path("lib/systemd/system/buildbot-irc.service"));
        let unit = unit.unwrap();
        let mut lines = unit.lines();
        let line = lines.find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("no {key} in {unit}"))
            .to_string()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Tens of megabytes; kept for whoever wants to know why a test has failed.
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The packages that a package depends on, those that run its scripts, and their libraries.
fn packages(package: &Path) -> Vec<String> {
    let depends = succeed(
        Command::new("dpkg-deb")
            .arg("-f")
            .arg(package)
            .arg("Depends"),
    );
    let mut found = names(&depends);
    found.extend(["dash", "coreutils", "perl-base", "init-system-helpers"].map(String::from));
    let mut at = 0;
    while at < found.len() {
        let mut query = Command::new("dpkg-query");
        query.args(["-W", "-f", "${Depends},${Pre-Depends}", &found[at]]);
        let more = names(&succeed(&mut query));
        for name in more {
            if name.starts_with("lib") && !found.contains(&name) {
                found.push(name);
            }
        }
        at += 1;
    }
    found
}

/// The names in a list of dependencies.
fn names(depends: &str) -> Vec<String> {
    let words = depends.split(',').map(str::trim);
    let names = words.filter_map(|word| word.split([' ', ':', '|']).next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect()
}

#[test]
fn the_configuration_that_is_printed_is_the_example() {
    let done = Bot::run(&scratch("print"), &["--print-config"]);
    let example = fs::read_to_string(root().join("bot.conf.example")).unwrap();
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr, "");
    assert!(done.stdout == example, "{}", done.stdout);
}

#[test]
fn the_same_program_makes_the_same_package() {
    let program = stripped();
    let [first, second] = ["022", "077"].map(|umask| fs::read(build(&program, umask)).unwrap());
    assert!(first == second, "the two packages differ");
}

#[test]
fn a_package_is_installed_runs_and_is_purged() {
    let package = build(&stripped(), "022");
    let root = Root::new(&package);
    let before = root.files();
    let package = package.to_str().unwrap();
    root.dpkg(&["--install", package]);

    // What has come, and how.
    let installed: BTreeSet<String> = root.files().difference(&before).cloned().collect();
    let doc = "./usr/share/doc/buildbot-irc";
    for name in [
        "./etc/buildbot-irc/bot.conf",
        "./usr/bin/buildbot-irc",
        "./usr/lib/systemd/system/buildbot-irc.service",
        "./usr/share/man/man1/buildbot-irc.1.gz",
        "./usr/share/man/man5/bot.conf.5.gz",
        &format!("{doc}/README.md"),
        &format!("{doc}/changelog.gz"),
        &format!("{doc}/copyright"),
    ] {
        assert!(installed.contains(name), "no {name} in {installed:?}");
    }
    let config = root.path("etc/buildbot-irc/bot.conf");
    let mode = fs::metadata(&config).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    let printed = succeed(root.command("/usr/bin/buildbot-irc").arg("--print-config"));
    assert_eq!(fs::read_to_string(&config).unwrap(), printed);
    assert!(
        !installed.iter().any(|name| name.contains(".wants/")),
        "nothing is enabled by itself: {installed:?}"
    );

    // Filled in, it stays through an upgrade, and is good.
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    fs::write(&config, lab.config("bot", "", "[channel #lab]")).unwrap();
    root.dpkg(&["--install", package]);
    let checked = succeed(root.command("/usr/bin/buildbot-irc").arg("-t"));
    assert_eq!(checked, "/etc/buildbot-irc/bot.conf: ok\n");

    // Started as the unit says.
    fs::create_dir_all(root.path("run/buildbot-irc")).unwrap();
    let prepare = root.unit("ExecStartPre");
    let prepare = prepare.strip_prefix("+/bin/sh -c '").unwrap();
    let prepare = prepare.strip_suffix('\'').unwrap();
    succeed(root.command("/bin/sh").args(["-c", prepare]));
    let start = root.unit("ExecStart");
    let start = start.replace("${RUNTIME_DIRECTORY}", "/run/buildbot-irc");
    let mut words = start.split(' ');
    let mut command = root.command(words.next().unwrap());
    command.args(words);
    let mut bot = Process::start("packaged bot", command);
    joe.expect_contains("JOIN :#lab");
    let channel = Listener::new(&joe, "#lab");
    channel.ask("bot: hello", "<bot> *");
    assert_eq!(bot.terminate().code(), Some(0), "{}", bot.output());
    fs::remove_dir_all(root.path("run/buildbot-irc")).unwrap();

    // Enabled by the administrator, and with a state as systemd keeps it.
    let systemctl = || {
        let mut command = as_root("systemctl");
        command.arg(format!("--root={}", root.dir.display()));
        command
    };
    succeed(systemctl().args(["enable", "buildbot-irc"]));
    let enabled = succeed(systemctl().args(["is-enabled", "buildbot-irc"]));
    assert_eq!(enabled, "enabled\n");
    fs::create_dir_all(root.path("var/lib/private/buildbot-irc")).unwrap();
    fs::write(root.path("var/lib/private/buildbot-irc/state"), "{}").unwrap();
    symlink("private/buildbot-irc", root.path("var/lib/buildbot-irc")).unwrap();

    // Removed, it leaves what it was told and what it remembers; purged, nothing.
    root.dpkg(&["--remove", "buildbot-irc"]);
    assert!(!root.path("usr/bin/buildbot-irc").exists());
    assert!(config.exists());
    assert!(root.path("var/lib/buildbot-irc/state").exists());
    root.dpkg(&["--purge", "buildbot-irc"]);
    let left: Vec<String> = root.files().difference(&before).cloned().collect();
    assert_eq!(left, [""; 0]);
    assert!(!root.path("etc/buildbot-irc").exists());
    assert!(!root.path("var/lib/private/buildbot-irc").exists());
}

#[test]
#[ignore = "needs `make deb` and lintian: see `make test-packages`"]
fn lintian_finds_no_errors() {
    let out = Command::new("lintian")
        .args(["--fail-on", "error", "--allow-root"])
        .arg(made())
        .output();
    let out = out.expect("lintian; apt-get install --no-install-recommends lintian");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}");
}

/// What `make deb` has made of this version.
fn made() -> PathBuf {
    let arch = succeed(Command::new("dpkg").arg("--print-architecture"));
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("target/buildbot-irc_{version}-1_{}.deb", arch.trim());
    let file = root().join(name);
    assert!(
        file.exists(),
        "{} is not there; `make deb` makes it",
        file.display()
    );
    file
}

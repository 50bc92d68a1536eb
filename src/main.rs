//! `buildbot-irc`: an IRC bot for a Buildbot master. Options, exit codes, threads.

#[macro_use]
mod log;
mod bot;
mod command;
mod config;
mod net;
mod status;
mod store;
mod supervisor;
mod text;
/// The IRC side: bytes, the session, what waits to be said.
mod irc {
    pub mod outbox;
    pub mod session;
    pub mod wire;
}
/// The master's side: HTTP, Buildbot's API, when to ask, jobs on demand.
mod master {
    pub mod api;
    pub mod http;
    pub mod poller;
    pub mod worker;
}

use bot::{Bot, Event, Failure, Ties};
use command::{Answer, Ask, View};
use config::Config;
use master::api::{Error, Master};
use master::poller::{self, Note, Poller, lock};
use master::worker::{self, Done, Facts, Job};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use status::{Settings, Status};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use store::State;

/// Events that wait for the main thread: a server that floods is slowed down by TCP.
const EVENTS: usize = 64;
/// Jobs that wait for the worker; more are refused as "busy".
const JOBS: usize = 8;
const SYNOPSIS: &str = "Usage: buildbot-irc [-c FILE] [-v|-q] [-l LOCKFILE]\n       buildbot-irc [-c FILE] -t | -x COMMAND";

fn main() -> ExitCode {
    // A bug in any thread ends the program, with the code for that.
    std::panic::set_hook(Box::new(|bug| {
        let _ = writeln!(std::io::stderr(), "buildbot-irc: this is a bug: {bug}");
        std::process::exit(70);
    }));
    let Err(Failure(code, why)) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{why}");
    ExitCode::from(code)
}

fn run() -> Result<(), Failure> {
    let mut options = getopts::Options::new();
    options
        .optopt(
            "c",
            "config",
            "the configuration (bot.conf, else /etc/buildbot-irc/bot.conf)",
            "FILE",
        )
        .optflag("t", "test-config", "check the configuration and exit")
        .optopt(
            "x",
            "execute",
            "run one bot command against the master and exit",
            "COMMAND",
        )
        .optopt(
            "l",
            "lock",
            "hold this lock; if another process does, exit silently",
            "LOCKFILE",
        )
        .optflag("v", "verbose", "log the wire, too")
        .optflag("q", "quiet", "log warnings and errors only")
        .optflag("h", "help", "show this and exit")
        .optflag("V", "version", "show the version and exit");
    let usage = |why: String| Failure(64, format!("buildbot-irc: {why}; try --help"));
    let given = options
        .parse(std::env::args_os().skip(1))
        .map_err(|e| usage(e.to_string()))?;
    let has = |option| given.opt_present(option);
    if has("h") {
        print!("{}", options.usage(SYNOPSIS));
        return Ok(());
    }
    if has("V") {
        println!("buildbot-irc {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if let Some(word) = given.free.first() {
        return Err(usage(format!(
            "what is `{word}`? Quote the command behind -x"
        )));
    }
    if has("t") && has("x") {
        return Err(usage("-t and -x exclude each other".into()));
    }
    match (has("v"), has("q") || has("x")) {
        (true, _) if has("q") => return Err(usage("-v and -q exclude each other".into())),
        (true, _) => log::set_limit(log::Level::Debug),
        (false, true) => log::set_limit(log::Level::Warning),
        (false, false) => {}
    }
    let _lock = match given.opt_str("l").map(|path| hold(&path)).transpose()? {
        Some(None) => return Ok(()),
        held => held,
    };
    let path = given.opt_str("c").unwrap_or_else(|| {
        let here = fs::exists("bot.conf").unwrap_or(false);
        if here {
            "bot.conf"
        } else {
            "/etc/buildbot-irc/bot.conf"
        }
        .to_owned()
    });
    let lost = !has("c") && !fs::exists(&path).unwrap_or(true);
    let hint = if lost {
        "; nor is there a bot.conf here (-c FILE names one)"
    } else {
        ""
    };
    let config = load(&path).map_err(|why| Failure(78, why + hint))?;
    if has("t") {
        println!("{path}: ok");
        return Ok(());
    }
    match given.opt_str("x") {
        Some(command) => execute(&config, &command),
        None => serve(config, path),
    }
}

/// Holds a lock for life; nothing if another process has it.
fn hold(path: &str) -> Result<Option<File>, Failure> {
    let failed = |e: std::io::Error| Failure(74, format!("{path}: {e}"));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            // The process id is for people; the lock is what counts.
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .map_err(failed)?;
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Reads and checks the configuration and all files that it names.
fn load(path: &str) -> Result<Config, String> {
    let text =
        String::from_utf8(fs::read(path).map_err(|e| format!("{path}: {e}"))?).map_err(|e| {
            let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            format!(
                "{path}:{}: a character that is no UTF-8",
                before.split(|b| *b == b'\n').count()
            )
        })?;
    let read = |file: &str| {
        let folder = std::env::var("CREDENTIALS_DIRECTORY").unwrap_or_default();
        fs::read(file.replace("$CREDENTIALS_DIRECTORY", &folder)).map_err(|e| e.to_string())
    };
    let config = Config::parse(path, &text, &read).map_err(|errors| errors.join("\n"))?;
    let tls = config
        .irc
        .iter()
        .map(|irc| ("irc", &irc.tls))
        .chain([("buildbot", &config.buildbot.tls)]);
    // Without files there is nothing to check, and reading all of the system's takes its time.
    for (section, tls) in tls.filter(|(_, tls)| **tls != config::Tls::default()) {
        net::connector(tls).map_err(|e| format!("{path}: [{section}] {e}"))?;
    }
    let here = |host: &str| ["localhost", "::1"].contains(&host) || host.starts_with("127.");
    let url = &config.buildbot.url;
    if config.buildbot.password.is_some() && !url.https && !here(&url.host) {
        log!(
            Warning,
            "{path}: the master's password goes over plain http to {}",
            url.host
        );
    }
    if let Some(irc) = &config.irc
        && (irc.password.is_some() || irc.server_password.is_some())
        && !(irc.use_ssl || here(&irc.host))
    {
        log!(
            Warning,
            "{path}: a password goes over plain IRC to {}; use_ssl = yes encrypts it",
            irc.host
        );
    }
    if config.has_secret && fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o004 != 0) {
        log!(
            Warning,
            "{path}: holds a password and is readable by everyone; chmod o-r"
        );
    }
    Ok(config)
}

/// `-x`: one command against the master, without IRC.
fn execute(config: &Config, text: &str) -> Result<(), Failure> {
    let status = Arc::new(Mutex::new(Status::default()));
    let mut master = client(config)?;
    let mut poller = Poller::new(
        client(config)?,
        config.buildbot.poll_interval,
        status.clone(),
    );
    let ask = Ask {
        text: text.to_owned(),
        nick: "you".into(),
        ..Ask::default()
    };
    let settings = Settings::default();
    let answer = |again| {
        let status = lock(&status);
        let now = log::unix_now();
        command::run(
            &ask,
            &View {
                status: &status,
                settings: &settings,
                now,
                again,
                most: usize::MAX,
                nick: "",
            },
        )
    };
    // Only what the master must answer is worth asking it.
    if command::asks_master(text) {
        poller.poll().map_err(|e| Failure(69, e.to_string()))?;
    }
    let mut again = false;
    let lines = loop {
        match answer(again).map_err(|why| Failure(65, why))? {
            Answer::Say(lines, _) | Answer::Lines(lines, _) => break lines,
            // The names alone, for scripts.
            Answer::List { head, items } => {
                if items.is_empty() {
                    eprintln!("{head}");
                }
                break items;
            }
            Answer::First(job) => match worker::run(&job, &mut master) {
                Ok(Done::Facts(facts)) => poller.learn(facts),
                Ok(Done::Lines(lines, _)) => break lines,
                Err(e @ Error::Unreachable(_)) => return Err(Failure(69, e.to_string())),
                Err(e) => return Err(Failure(65, e.to_string())),
            },
        }
        again = true;
    };
    let mut out = std::io::stdout().lock();
    match lines.iter().try_for_each(|line| writeln!(out, "{line}")) {
        // A reader that went away (`| head`) is no error.
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure(74, format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// A way to the master, for one thread.
fn client(config: &Config) -> Result<Master, Failure> {
    Master::new(&config.buildbot).map_err(|why| Failure(78, format!("[buildbot] {why}")))
}

/// Starts the threads and runs the bot until it is told to stop.
fn serve(config: Config, path: String) -> Result<(), Failure> {
    let (events, taken) = sync_channel(EVENTS);
    let (notes, noted) = sync_channel(EVENTS);
    // Whoever asks does not wait for a build that is being forced.
    let (questions, orders) = (sync_channel(JOBS), sync_channel(JOBS));
    let state = config
        .state_file
        .as_ref()
        .map_or(Ok(State::default()), |path| State::load(path));
    let state = state.map_err(|e| Failure(74, e))?;
    let status = Arc::new(Mutex::new(Status::default()));
    let poller = Poller::new(
        client(&config)?,
        config.buildbot.poll_interval,
        status.clone(),
    );
    let workers = [
        (client(&config)?, questions.1),
        (client(&config)?, orders.1),
    ];
    let listener = config
        .buildbot
        .event_stream
        .then(|| client(&config))
        .transpose()?;
    let url = config.buildbot.url.to_string();
    let reload = Box::new(move || load(&path));
    let bot = Bot::new(
        config,
        state,
        Ties {
            status,
            events: events.clone(),
            questions: questions.0,
            orders: orders.0,
            reload,
        },
    )?;

    let heard = events.clone();
    spawn("poller", move || {
        poller.run(&noted, &|h| heard.send(Event::Heard(h)).is_ok())
    })?;
    if let Some(master) = listener {
        let notes = notes.clone();
        spawn("events", move || poller::listen(master, &notes))?;
    }
    for (mut master, todo) in workers {
        let (notes, done) = (notes.clone(), events.clone());
        spawn("worker", move || {
            // When nobody listens any more, the program is at its end.
            let _ = todo
                .iter()
                .all(|(ask, job)| match worker::run(&job, &mut master) {
                    Ok(Done::Facts(facts)) => notes.send(Note::Learned(facts, ask)).is_ok(),
                    Ok(Done::Lines(lines, request)) => {
                        done.send(Event::Done(ask, lines, request)).is_ok()
                    }
                    Err(e) if matches!(job, Job::Facts { .. }) => {
                        // What is known must do.
                        log!(Warning, "{e}");
                        notes.send(Note::Learned(Facts::default(), ask)).is_ok()
                    }
                    Err(e) => {
                        let lead = if let Error::Unreachable(_) = e {
                            "the master does not answer: "
                        } else {
                            ""
                        };
                        done.send(Event::Done(ask, vec![format!("{lead}{e}")], None))
                            .is_ok()
                    }
                });
        })?;
    }
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]);
    let mut signals = signals.map_err(|e| Failure(70, format!("signals: {e}")))?;
    spawn("signals", move || {
        let event = |signal| {
            if signal == SIGHUP {
                Event::Reload
            } else {
                Event::Stop
            }
        };
        let _ = signals
            .forever()
            .all(|signal| events.send(event(signal)).is_ok());
    })?;
    let hint = if std::io::stderr().is_terminal() {
        "; Ctrl-C stops me"
    } else {
        ""
    };
    log!(
        Info,
        "buildbot-irc {} for {url}{hint}",
        env!("CARGO_PKG_VERSION")
    );
    bot.run(&taken)?;
    log!(Info, "stopped");
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    thread
        .map(drop)
        .map_err(|e| Failure(70, format!("thread {name}: {e}")))
}

#[cfg(test)]
#[path = "../tests/common/fuzz.rs"]
mod fuzz;

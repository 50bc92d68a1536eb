//! The command line: options, `-t`, `-x`, the lock, and starting the threads.

use crate::bot::{Bot, Failure, FailureKind, Handles, Input, JobOrder};
use crate::clock::unix_now;
use crate::commands::{self, Context, Response};
use crate::config::{self, Config, Irc, TargetSettings};
use crate::irc::Invocation;
use crate::master::client::{Client, Error, ErrorKind};
use crate::master::events;
use crate::master::jobs::{self, Job, JobResult};
use crate::master::model::Model;
use crate::master::poller::{Asker, Askers, Poller, PollerInput, TrackedRequests, lock, run_asker};
use crate::master::sync::Lookup;
use crate::names::Casemapping;
use crate::routing::{self, Routing};
use crate::state_file::{self, State};
use crate::{log, net, text};
use getopts::{Matches, Options};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind as IoErrorKind, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const EXIT_USAGE: u8 = 64;
/// `-x`: the command was wrong.
const EXIT_COMMAND: u8 = 65;
/// `-x`: the master is unreachable, or it is not known whether it did it.
const EXIT_UNAVAILABLE: u8 = 69;
pub const EXIT_BUG: u8 = 70;
const EXIT_FILE: u8 = 74;
const EXIT_CONFIGURATION: u8 = 78;

/// What is nice to have in a line comes in time or not at all.
const DETAILS_TIMEOUT: Duration = Duration::from_secs(5);
/// Inputs that wait for the main thread, or for the poller: a server that floods is slowed down by
/// TCP.
const INPUTS: usize = 64;
/// Jobs that wait; more are refused as "busy", or done without.
const JOBS: usize = 8;
const DETAILS: usize = 64;
/// Look-ups at once: the slow answer of one builder keeps none of the others waiting.
const LOOKUP_ASKERS: usize = 3;
/// While somebody waits for a reply, a GET that broke off is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(5);

const SYNOPSIS: &str = "Usage: buildbot-irc [-c FILE] [-v|-q] [-l LOCKFILE]\n       \
    buildbot-irc [-c FILE] -t | -x COMMAND\n       buildbot-irc --print-config";

/// How the program ends if not well: the exit code, and a sentence.
pub struct Exit {
    pub code: u8,
    pub why: String,
}

impl Exit {
    fn new(code: u8, why: impl Into<String>) -> Exit {
        Exit {
            code,
            why: why.into(),
        }
    }

    fn usage(why: impl std::fmt::Display) -> Exit {
        Exit::new(EXIT_USAGE, format!("buildbot-irc: {why}; try --help"))
    }
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Exit {
        let code = match failure.kind {
            FailureKind::Configuration => EXIT_CONFIGURATION,
            FailureKind::File => EXIT_FILE,
        };
        Exit::new(code, failure.why)
    }
}

fn options() -> Options {
    let mut options = Options::new();
    let configuration = "the configuration (bot.conf, else /etc/buildbot-irc/bot.conf)";
    let lock = "hold this lock; if another process does, exit silently";
    options.optopt("c", "config", configuration, "FILE");
    options.optflag("t", "test-config", "check the configuration and exit");
    options.optopt(
        "x",
        "execute",
        "run one bot command against the master and exit",
        "COMMAND",
    );
    options.optopt("l", "lock", lock, "LOCKFILE");
    options.optflag(
        "",
        "print-config",
        "print an example configuration, with every key",
    );
    options.optflag("v", "verbose", "log the wire, too");
    options.optflag("q", "quiet", "log warnings and errors only");
    options.optflag("h", "help", "show this and exit");
    options.optflag("V", "version", "show the version and exit");
    options
}

/// The program, from its options to its end.
pub fn run() -> Result<(), Exit> {
    let options = options();
    let arguments = std::env::args_os().skip(1);
    let given = options.parse(arguments).map_err(Exit::usage)?;
    if given.opt_present("h") {
        return print(&options.usage(SYNOPSIS));
    }
    if given.opt_present("V") {
        return print(concat!("buildbot-irc ", env!("CARGO_PKG_VERSION"), "\n"));
    }
    if given.opt_present("print-config") {
        return print(config::EXAMPLE);
    }
    check_usage(&given)?;
    set_log_limit(&given);
    let lock = match given.opt_str("l") {
        Some(path) => match hold_lock(&path)? {
            Some(lock) => Some(lock),
            None => return Ok(()),
        },
        None => None,
    };
    let path = config_path(&given);
    let config = load_or_explain(&path, &given)?;
    let result = if given.opt_present("t") {
        check(&config, &path)
    } else if let Some(command) = given.opt_str("x") {
        execute(&config, &command)
    } else {
        serve(config, path)
    };
    // Held for life.
    drop(lock);
    result
}

fn check_usage(given: &Matches) -> Result<(), Exit> {
    let has = |option| given.opt_present(option);
    if let Some(word) = given.free.first() {
        let why = format!("what is `{word}`? Quote the command behind -x");
        return Err(Exit::usage(why));
    }
    if has("t") && has("x") {
        return Err(Exit::usage("-t and -x exclude each other"));
    }
    if has("v") && has("q") {
        return Err(Exit::usage("-v and -q exclude each other"));
    }
    Ok(())
}

fn set_log_limit(given: &Matches) {
    if given.opt_present("v") {
        log::set_limit(log::Level::Debug);
    } else if given.opt_present("q") || given.opt_present("x") {
        log::set_limit(log::Level::Warning);
    }
}

/// Writes to standard output. A reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() != IoErrorKind::BrokenPipe => {
            Err(Exit::new(EXIT_FILE, format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Holds a lock for life; nothing if another process has it.
fn hold_lock(path: &str) -> Result<Option<File>, Exit> {
    let failed = |e: std::io::Error| Exit::new(EXIT_FILE, format!("{path}: {e}"));
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    let mut file = options.open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            // The process id is for people; the lock is what counts.
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

// The configuration

fn config_path(given: &Matches) -> String {
    if let Some(path) = given.opt_str("c") {
        return path;
    }
    let is_here = fs::exists("bot.conf").unwrap_or(false);
    let path = if is_here {
        "bot.conf"
    } else {
        "/etc/buildbot-irc/bot.conf"
    };
    path.to_owned()
}

fn load_or_explain(path: &str, given: &Matches) -> Result<Config, Exit> {
    load_config(path).map_err(|why| {
        let is_lost = !given.opt_present("c") && !fs::exists(path).unwrap_or(true);
        let hint = if is_lost {
            "; nor is there a bot.conf here (-c FILE names one)"
        } else {
            ""
        };
        Exit::new(EXIT_CONFIGURATION, format!("{why}{hint}"))
    })
}

/// Reads and checks the configuration and all files that it names.
fn load_config(path: &str) -> Result<Config, String> {
    let bytes = fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        format!("{path}:{line}: a character that is no UTF-8")
    })?;
    let config = Config::parse(path, &text, &read_named_file).map_err(|errors| {
        let sentences: Vec<String> = errors.iter().map(ToString::to_string).collect();
        sentences.join("\n")
    })?;
    check_tls_files(path, &config)?;
    warn_of_exposed_secrets(path, &config);
    for warning in &config.warnings {
        log!(Warning, "{warning}");
    }
    Ok(config)
}

/// Reads a file that the configuration names; systemd's folder of credentials is expanded.
fn read_named_file(file: &str) -> Result<Vec<u8>, String> {
    const FOLDER: &str = "$CREDENTIALS_DIRECTORY";
    let mut file = file.to_owned();
    if file.contains(FOLDER) {
        let folder = std::env::var("CREDENTIALS_DIRECTORY");
        let unset = "CREDENTIALS_DIRECTORY is not set (systemd sets it; by hand: \
                     CREDENTIALS_DIRECTORY=/some/folder buildbot-irc …)";
        file = file.replace(FOLDER, &folder.map_err(|_| unset)?);
    }
    fs::read(file).map_err(|e| e.to_string())
}

fn check_tls_files(path: &str, config: &Config) -> Result<(), String> {
    let mut sections = vec![("buildbot", &config.buildbot.tls)];
    sections.extend(config.irc.as_ref().map(|irc| ("irc", &irc.tls)));
    for (section, tls) in sections {
        // Without files there is nothing to check, and reading all of the system's takes its time.
        if *tls != config::Tls::default() {
            net::connector(tls).map_err(|e| format!("{path}: [{section}] {e}"))?;
        }
    }
    Ok(())
}

fn warn_of_exposed_secrets(path: &str, config: &Config) {
    let is_here = |host: &str| ["localhost", "::1"].contains(&host) || host.starts_with("127.");
    let master = &config.buildbot;
    let host = &master.url.host;
    let has_password = master.password.is_some() || master.proxy_password.is_some();
    if has_password && !master.url.https && !is_here(host) {
        log!(
            Warning,
            "{path}: the master's password goes over plain http to {host}"
        );
    }
    if let Some(irc) = &config.irc {
        let has_password = irc.password.is_some() || irc.server_password.is_some();
        let host = &irc.host;
        if has_password && !irc.use_ssl && !is_here(host) {
            let advice = "use_ssl = yes encrypts it";
            log!(
                Warning,
                "{path}: a password goes over plain IRC to {host}; {advice}"
            );
        }
    }
    let is_readable = |m: fs::Metadata| m.permissions().mode() & 0o004 != 0;
    if config.has_secret && fs::metadata(path).is_ok_and(is_readable) {
        log!(
            Warning,
            "{path}: holds a password and is readable by everyone; chmod o-r"
        );
    }
}

/// `-t`: what only shows when the bot starts is tried, too.
fn check(config: &Config, path: &str) -> Result<(), Exit> {
    if let Some(state_file) = &config.state_file {
        let checked = state_file::check_writable(state_file);
        let failed = |why| Exit::new(EXIT_CONFIGURATION, format!("{path}: `state_file`: {why}"));
        checked.map_err(failed)?;
    }
    if let Some(irc) = &config.irc {
        warn_of_silence(irc, path);
        warn_of_idle_patterns(config, irc, path)?;
    }
    print(&format!("{path}: ok\n"))
}

/// A configuration may be right, and yet nobody would ever hear anything.
fn warn_of_silence(irc: &Irc, path: &str) {
    let is_loud = |settings: &TargetSettings| !settings.events.is_empty();
    let people_hear = !irc.pm_to_nicks.is_empty() && is_loud(&irc.defaults);
    let channels_hear = irc
        .channels
        .iter()
        .any(|channel| is_loud(&channel.settings));
    if irc.channels.is_empty() && irc.pm_to_nicks.is_empty() {
        log!(
            Warning,
            "{path}: no [channel #name]: the bot joins nothing by itself"
        );
    } else if !people_hear && !channels_hear {
        log!(Warning, "{path}: no `notify_events`: nothing is announced");
    }
}

/// Names a pattern that matches no builder of the master, or a tag that none has. Where the master
/// does not answer, that is no fault of the file.
fn warn_of_idle_patterns(config: &Config, irc: &Irc, path: &str) -> Result<(), Exit> {
    let channels = irc.channels.iter().map(|channel| &channel.settings);
    let mut all_settings = channels.chain([&irc.defaults]);
    if !all_settings.any(TargetSettings::has_patterns) {
        return Ok(());
    }
    let model = Arc::new(Mutex::new(Model::default()));
    let mut client = client(config, Duration::ZERO)?;
    let mut poller = single_poller(config, &model);
    if let Err(error) = poller.poll_once(&mut client) {
        log!(
            Info,
            "{path}: `builders` and `tags` are not compared with the master's: {error}"
        );
        return Ok(());
    }
    for sentence in routing::idle_patterns(irc, lock(&model).builders()) {
        log!(Warning, "{path}: {sentence}");
    }
    Ok(())
}

/// A way to the master, for one thread.
fn client(config: &Config, patience: Duration) -> Result<Client, Exit> {
    let client = Client::new(&config.buildbot, patience);
    client.map_err(|why| Exit::new(EXIT_CONFIGURATION, format!("[buildbot] {why}")))
}

/// What learns of the master once, on this thread.
fn single_poller(config: &Config, model: &Arc<Mutex<Model>>) -> Poller {
    let interval = config.buildbot.poll_interval;
    Poller::new(interval, model.clone(), TrackedRequests::default())
}

// One command

/// `-x`: one command against the master, without IRC.
fn execute(config: &Config, command: &str) -> Result<(), Exit> {
    let model = Arc::new(Mutex::new(Model::default()));
    let mut client = client(config, PATIENCE)?;
    let mut poller = single_poller(config, &model);
    // Only what the master must answer is worth asking it.
    if commands::needs_model(command) {
        let failed = |error: Error| {
            let url = &config.buildbot.url;
            let why = format!("the master at {url} does not answer: {error}");
            Exit::new(EXIT_UNAVAILABLE, why)
        };
        poller.poll_once(&mut client).map_err(failed)?;
    }
    let lines = run_command(command, &model, &mut poller, &mut client)?;
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    print(&text)
}

/// Runs a command, with the jobs that it needs.
fn run_command(
    command: &str,
    model: &Mutex<Model>,
    poller: &mut Poller,
    client: &mut Client,
) -> Result<Vec<String>, Exit> {
    let invocation = Invocation {
        text: command.to_owned(),
        nick: Casemapping::default().name("you"),
        ..Invocation::default()
    };
    let settings = TargetSettings::default();
    let routing = Routing::default();
    let mut lookup_done = false;
    loop {
        let locked = lock(model);
        let context = Context {
            model: &locked,
            routing: &routing,
            settings: &settings,
            now: unix_now(),
            lookup_done,
            max_lines: usize::MAX,
            nick: None,
            own_only: false,
        };
        let response = commands::run(&invocation, &context);
        let base = locked.identity.url.clone();
        drop(locked);
        let job = match response.map_err(|why| Exit::new(EXIT_COMMAND, why))? {
            Response::Lines(lines) | Response::Cut { lines, .. } => return Ok(lines),
            Response::Change(lines, _) => return Ok(lines),
            // The names alone, for scripts.
            Response::List { heading, items, .. } => {
                if items.is_empty() {
                    let _ = writeln!(std::io::stderr(), "{heading}");
                }
                return Ok(items);
            }
            Response::NeedsJob(job) => job,
        };
        match jobs::run(&job, client).map_err(master_exit)? {
            JobResult::Lookup(lookup) => poller.take_lookup(lookup),
            result => return Ok(text::job_result(&result, &base)),
        }
        lookup_done = true;
    }
}

/// The exit code for what went wrong at the master.
fn master_exit(error: Error) -> Exit {
    let code = match error.kind {
        ErrorKind::Refused(_) | ErrorKind::Wrong => EXIT_COMMAND,
        _ => EXIT_UNAVAILABLE,
    };
    Exit::new(code, error.to_string())
}

// The bot

/// Starts the threads and runs the bot until it is told to stop.
fn serve(config: Config, path: String) -> Result<(), Exit> {
    let (held, state) = open_state(&config)?;
    let (input_sender, inputs) = sync_channel(INPUTS);
    let (poller_sender, poller_inputs) = sync_channel(INPUTS);
    let threads = Threads {
        inputs: input_sender.clone(),
        poller_inputs: poller_sender,
    };
    let model = Arc::new(Mutex::new(Model::default()));
    let tracked = TrackedRequests::default();
    let poller = Poller::new(
        config.buildbot.poll_interval,
        model.clone(),
        tracked.clone(),
    );
    let details_client = client(&config, Duration::ZERO)?
        .in_haste()
        .with_timeout(DETAILS_TIMEOUT);
    let stream_client = client(&config, Duration::ZERO)?;
    let handles = Handles {
        model,
        tracked,
        inputs: input_sender,
        lookups: threads.start_jobs("lookups", client(&config, PATIENCE)?.in_haste(), JOBS)?,
        orders: threads.start_jobs("orders", client(&config, PATIENCE)?, JOBS)?,
        details: threads.start_jobs("details", details_client, DETAILS)?,
        reload: Box::new(move || load_config(&path)),
    };
    let url = config.buildbot.url.to_string();
    let has_stream = config.buildbot.event_stream;
    let mut askers = Askers {
        lists: threads.start_asker("lists", client(&config, Duration::ZERO)?)?,
        lookups: Vec::new(),
    };
    for _ in 0..LOOKUP_ASKERS {
        let lookups_client = client(&config, PATIENCE)?.in_haste();
        let asker = threads.start_asker("history", lookups_client)?;
        askers.lookups.push(asker);
    }
    // What the state file says must be in the model before the poller looks.
    let bot = Bot::new(config, state, handles)?;
    threads.start_poller(poller, askers, poller_inputs)?;
    if has_stream {
        threads.start_stream(stream_client)?;
    }
    threads.start_signals()?;
    let is_terminal = std::io::stderr().is_terminal();
    let hint = if is_terminal { "; Ctrl-C stops me" } else { "" };
    let version = env!("CARGO_PKG_VERSION");
    log!(Info, "buildbot-irc {version} for {url}{hint}");
    bot.run(&inputs)?;
    log!(Info, "stopped");
    drop(held);
    Ok(())
}

/// The state, and the lock on its file, which is held for life.
fn open_state(config: &Config) -> Result<(Option<File>, State), Exit> {
    let Some(path) = &config.state_file else {
        return Ok((None, State::default()));
    };
    let failed = |why: String| Exit::new(EXIT_FILE, why);
    let held = state_file::hold(path).map_err(failed)?;
    let state = State::load(path).map_err(failed)?;
    Ok((Some(held), state))
}

/// Where the threads bring what they learn.
struct Threads {
    inputs: SyncSender<Input>,
    poller_inputs: SyncSender<PollerInput>,
}

impl Threads {
    fn start_poller(
        &self,
        poller: Poller,
        askers: Askers,
        inputs: Receiver<PollerInput>,
    ) -> Result<(), Exit> {
        let main = self.inputs.clone();
        spawn("poller", move || {
            poller.run(askers, &inputs, &|event| {
                main.send(Input::Poller(event)).is_ok()
            });
        })
    }

    fn start_asker(&self, name: &str, client: Client) -> Result<Asker, Exit> {
        let (sender, queries) = sync_channel(1);
        let poller = self.poller_inputs.clone();
        spawn(name, move || {
            run_asker(client, &queries, &|answered| {
                poller.send(PollerInput::Answered(answered)).is_ok()
            });
        })?;
        Ok(Asker::new(sender))
    }

    fn start_stream(&self, client: Client) -> Result<(), Exit> {
        let poller = self.poller_inputs.clone();
        spawn("events", move || {
            events::run(client, &mut |event| {
                poller.send(PollerInput::Stream(event)).is_ok()
            });
        })
    }

    /// One worker for jobs of one kind; so many of them may wait.
    fn start_jobs(
        &self,
        name: &str,
        mut client: Client,
        capacity: usize,
    ) -> Result<SyncSender<JobOrder>, Exit> {
        let (sender, orders) = sync_channel::<JobOrder>(capacity);
        let main = self.inputs.clone();
        let poller = self.poller_inputs.clone();
        spawn(name, move || {
            for (ticket, job) in orders {
                let result = jobs::run(&job, &mut client);
                let is_wanted = match (result, &job) {
                    (Ok(JobResult::Lookup(lookup)), _) => {
                        poller.send(PollerInput::Lookup(lookup, ticket)).is_ok()
                    }
                    // What is known must do.
                    (Err(error), Job::Lookup { .. }) => {
                        log!(Warning, "{error}");
                        poller
                            .send(PollerInput::Lookup(Lookup::default(), ticket))
                            .is_ok()
                    }
                    (result, _) => main.send(Input::JobDone(ticket, result)).is_ok(),
                };
                if !is_wanted {
                    return;
                }
            }
        })?;
        Ok(sender)
    }

    fn start_signals(&self) -> Result<(), Exit> {
        let main = self.inputs.clone();
        let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]);
        let mut signals = signals.map_err(|e| Exit::new(EXIT_BUG, format!("signals: {e}")))?;
        spawn("signals", move || {
            for signal in signals.forever() {
                let input = if signal == SIGHUP {
                    Input::Reload
                } else {
                    Input::Stop
                };
                if main.send(input).is_err() {
                    return;
                }
            }
        })
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Exit> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    let failed = |e| Exit::new(EXIT_BUG, format!("thread {name}: {e}"));
    builder.spawn(body).map(drop).map_err(failed)
}

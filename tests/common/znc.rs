//! A real ZNC: a bouncer between the bot and an IRC server.

use super::{Process, START, daemon, free_port, scratch};
use std::fs;

pub struct Znc {
    pub port: u16,
    _process: Process,
}

impl Znc {
    /// The `server_password` that leads to its one user and network.
    pub const PASSWORD: &str = "lab/net:secret";

    /// Before the IRC server on this port of 127.0.0.1, where it is `bot`. It stays in the channels that its client has
    /// joined, and keeps what is said there while no client is connected. A lost server is tried again each second, and
    /// the channels are joined a second after it has let ZNC in.
    #[track_caller]
    pub fn start(server: u16) -> Znc {
        let dir = scratch("znc");
        let port = free_port();
        fs::create_dir(dir.join("configs")).unwrap();
        let config = format!(
            "Version = 1.8.2\nConnectDelay = 1\nServerThrottle = 1\n\
             <Listener lab>\nHost = 127.0.0.1\nPort = {port}\nIPv4 = true\nIPv6 = false\nSSL = false\n</Listener>\n\
             <User lab>\nPass = plain#secret\nNick = bot\nIdent = bot\nRealName = bot\n\
             <Network net>\nJoinDelay = 1\nServer = 127.0.0.1 {server}\n</Network>\n</User>\n"
        );
        fs::write(dir.join("configs/znc.conf"), config).unwrap();
        let mut command = daemon("znc");
        command
            .args(["--debug", "--no-color", "--datadir"])
            .arg(dir);
        let mut process = Process::start("znc", command);
        process.wait_for("its server", START, |process| {
            process
                .output()
                .contains("IRC -> ZNC [:irc.lab.test 376 ")
                .then_some(())
        });
        Znc {
            port,
            _process: process,
        }
    }
}

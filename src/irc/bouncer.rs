//! A bouncer between us and the network, such as ZNC or soju: how we know one, what it says of its
//! connection to the network, and how we ask past it whether our lines have arrived. Pure.

use super::Upstream;
use super::wire::{Line, Message};

/// Capabilities that only a bouncer has begin with these (IRCv3: vendors' names).
const VENDORS: [&str; 2] = ["soju.im/", "znc.in/"];

/// Whether a bouncer offers this capability.
pub fn is_bouncers(capability: &str) -> bool {
    VENDORS.iter().any(|vendor| capability.starts_with(vendor))
}

/// A question whose answer repeats the token and comes behind what the server says to our lines
/// before it. A bouncer answers PING itself, whatever became of them, but passes WHOIS on: the token
/// stands for a nick that nobody has.
pub fn arrival_question(token: &str, is_past_bouncer: bool) -> Line {
    if is_past_bouncer {
        Line::new("WHOIS", &[token], None)
    } else {
        Line::new("PING", &[], Some(token))
    }
}

/// What a message from the bouncer itself says of its connection to the network (ZNC 1.8,
/// `IRCSock.cpp` and `Client.cpp`).
pub fn upstream(message: &Message, text: &str) -> Option<Upstream> {
    let is_lost = ["Disconnected from IRC", "Your message to "];
    if message.nick() != "*status" {
        None
    } else if is_lost.iter().any(|words| text.starts_with(words)) {
        Some(Upstream::Lost)
    } else if text.starts_with("Connected!") {
        Some(Upstream::Back)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bouncer_is_known_by_its_capabilities() {
        for (capability, expected) in [
            ("znc.in/self-message", true),
            ("soju.im/bouncer-networks", true),
            ("batch", false),
            ("draft/znc.in/x", false),
            ("inspircd.org/standard-replies", false),
        ] {
            assert_eq!(is_bouncers(capability), expected, "{capability}");
        }
    }

    #[test]
    fn only_the_bouncer_itself_speaks_of_its_network() {
        let lost = Some(Upstream::Lost);
        for (source, text, expected) in [
            ("*status", "Disconnected from IRC. Reconnecting...", lost),
            (
                "*status",
                "Your message to #c got lost, you are not connected to IRC!",
                lost,
            ),
            ("*status", "Connected!", Some(Upstream::Back)),
            ("*status", "You are not Connected!", None),
            ("*log", "Disconnected from IRC.", None),
            ("joe", "Connected!", None),
        ] {
            let line = format!(":{source}!znc@znc.in PRIVMSG bot :{text}");
            let message = Message::parse(&line).unwrap();
            assert_eq!(upstream(&message, text), expected, "{line}");
        }
    }
}

//! The numerics that mean something to us, by their names in RFC 1459, RFC 2812, the IRCv3 texts
//! and the headers of the common servers.

pub const RPL_WELCOME: &str = "001";
pub const RPL_MYINFO: &str = "004";
pub const RPL_ISUPPORT: &str = "005";
pub const RPL_WHOISREGNICK: &str = "307";
pub const RPL_WHOISUSER: &str = "311";
pub const RPL_ENDOFWHOIS: &str = "318";
pub const RPL_WHOISACCOUNT: &str = "330";
pub const RPL_NAMREPLY: &str = "353";
pub const RPL_ENDOFMOTD: &str = "376";
pub const RPL_HOSTHIDDEN: &str = "396";

pub const ERR_NOSUCHNICK: &str = "401";
pub const ERR_NOSUCHCHANNEL: &str = "403";
pub const ERR_TOOMANYCHANNELS: &str = "405";
pub const ERR_UNKNOWNCOMMAND: &str = "421";
pub const ERR_NOMOTD: &str = "422";
pub const ERR_ERRONEUSNICKNAME: &str = "432";
pub const ERR_NICKNAMEINUSE: &str = "433";
pub const ERR_NICKCOLLISION: &str = "436";
/// Also a channel that cannot be joined now, in the same form.
pub const ERR_UNAVAILRESOURCE: &str = "437";
pub const ERR_TARGETTOOFAST: &str = "439";
pub const ERR_CANTCHANGENICK: &str = "447";
pub const ERR_FORBIDDENCHANNEL: &str = "448";
pub const ERR_NOTREGISTERED: &str = "451";
pub const ERR_PASSWDMISMATCH: &str = "464";
pub const ERR_YOUREBANNEDCREEP: &str = "465";
pub const ERR_LINKCHANNEL: &str = "470";
pub const ERR_CHANNELISFULL: &str = "471";
pub const ERR_INVITEONLYCHAN: &str = "473";
pub const ERR_BANNEDFROMCHAN: &str = "474";
pub const ERR_BADCHANNELKEY: &str = "475";
pub const ERR_BADCHANMASK: &str = "476";
pub const ERR_NEEDREGGEDNICK: &str = "477";
pub const ERR_BADCHANNAME: &str = "479";
pub const ERR_THROTTLE: &str = "480";
pub const ERR_SECUREONLYCHAN: &str = "489";
pub const ERR_TOOMANYJOINS: &str = "500";
pub const ERR_OPERSONLY: &str = "520";
pub const ERR_DISABLED: &str = "485";
pub const ERR_DELAYEDJOIN: &str = "495";
pub const ERR_BADCHANNEL: &str = "926";
pub const ERR_TARGCHANGE: &str = "707";

pub const RPL_MONOFFLINE: &str = "731";
pub const RPL_LOGGEDIN: &str = "900";
pub const ERR_NICKLOCKED: &str = "902";
pub const RPL_SASLSUCCESS: &str = "903";
pub const ERR_SASLFAIL: &str = "904";
pub const ERR_SASLTOOLONG: &str = "905";
pub const ERR_SASLABORTED: &str = "906";
pub const ERR_SASLALREADY: &str = "907";

/// A JOIN was refused.
pub const JOIN_REFUSED: [&str; 20] = [
    ERR_TARGETTOOFAST,
    ERR_NOSUCHCHANNEL,
    ERR_TOOMANYCHANNELS,
    ERR_UNAVAILRESOURCE,
    ERR_FORBIDDENCHANNEL,
    ERR_LINKCHANNEL,
    ERR_CHANNELISFULL,
    ERR_INVITEONLYCHAN,
    ERR_BANNEDFROMCHAN,
    ERR_BADCHANNELKEY,
    ERR_BADCHANMASK,
    ERR_NEEDREGGEDNICK,
    ERR_BADCHANNAME,
    ERR_THROTTLE,
    ERR_DISABLED,
    ERR_SECUREONLYCHAN,
    ERR_DELAYEDJOIN,
    ERR_TOOMANYJOINS,
    ERR_OPERSONLY,
    ERR_BADCHANNEL,
];

/// Too many different targets lately: later it works.
pub const TOO_MANY_TARGETS: [&str; 2] = [ERR_TARGETTOOFAST, ERR_TARGCHANGE];

/// Whether a command is an error numeric. Those from 900 on are answers to SASL.
pub fn is_error(command: &str) -> bool {
    let is_number = command.len() == 3 && command.bytes().all(|b| b.is_ascii_digit());
    is_number && matches!(command.as_bytes()[0], b'4' | b'5') || is_extended_error(command)
}

/// Errors above the range of RFC 2812: RPL_TARGUMODEG and ERR_TARGUMODEG of +g, ERR_TARGCHANGE, and
/// ERR_BADCHANNEL.
fn is_extended_error(command: &str) -> bool {
    matches!(command, "716" | ERR_TARGCHANGE | ERR_BADCHANNEL)
}

//! What the server says of itself in ISUPPORT (005). Pure.

use crate::names::Casemapping;

#[derive(Clone, Debug)]
pub struct Isupport {
    pub casemapping: Casemapping,
    pub is_casemapping_told: bool,
    /// PREFIX: the modes that give a rank, highest first, and the sign that shows each.
    pub rank_modes: String,
    pub rank_signs: String,
    /// CHANMODES: four kinds of modes, by whether they take a parameter.
    pub channel_modes: String,
    /// BOT: the mode that marks a bot.
    pub bot_mode: Option<String>,
    pub nick_length: Option<usize>,
}

impl Default for Isupport {
    /// What a server means that says nothing (RFC 1459).
    fn default() -> Isupport {
        Isupport {
            casemapping: Casemapping::default(),
            is_casemapping_told: false,
            rank_modes: "ov".to_owned(),
            rank_signs: "@+".to_owned(),
            channel_modes: "beI,k,l".to_owned(),
            bot_mode: None,
            nick_length: None,
        }
    }
}

impl Isupport {
    /// What a server means that says nothing, but for this.
    pub fn with_casemapping(casemapping: Casemapping) -> Isupport {
        Isupport {
            casemapping,
            ..Isupport::default()
        }
    }

    /// Takes in one token: `NAME` or `NAME=VALUE`.
    pub fn take(&mut self, token: &str) {
        let (name, value) = token.split_once('=').unwrap_or((token, ""));
        match name {
            "CASEMAPPING" => {
                self.casemapping = Casemapping::by_name(value);
                self.is_casemapping_told = true;
            }
            "PREFIX" => {
                // `(ov)@+`
                if let Some((modes, signs)) = value.trim_start_matches('(').split_once(')') {
                    self.rank_modes = modes.to_owned();
                    self.rank_signs = signs.to_owned();
                }
            }
            "CHANMODES" => self.channel_modes = value.to_owned(),
            "BOT" => self.bot_mode = Some(value.to_owned()).filter(|mode| !mode.is_empty()),
            "NICKLEN" => self.nick_length = value.parse().ok(),
            _ => {}
        }
    }

    /// The modes of a name as NAMES shows it, and the nick behind its signs.
    pub fn split_ranks<'a>(&self, name: &'a str) -> (String, &'a str) {
        let nick = name.trim_start_matches(|c| self.rank_signs.contains(c));
        let signs = &name[..name.len() - nick.len()];
        let mode_of = |sign| {
            let position = self.rank_signs.chars().position(|known| known == sign)?;
            self.rank_modes.chars().nth(position)
        };
        (signs.chars().filter_map(mode_of).collect(), nick)
    }

    /// Whether a set of rank modes makes an operator: `o` or anything above it.
    pub fn is_op(&self, ranks: &str) -> bool {
        let end = self.rank_modes.find('o').map_or(0, |at| at + 1);
        let high = &self.rank_modes[..end];
        ranks.contains(|rank| high.contains(rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_go_by_prefix() {
        let mut isupport = Isupport::default();
        assert!(isupport.is_op("o") && !isupport.is_op("v") && !isupport.is_op(""));
        isupport.take("PREFIX=(qaohv)~&@%+");
        assert_eq!(isupport.split_ranks("~@joe"), ("qo".to_owned(), "joe"));
        assert_eq!(isupport.split_ranks("joe"), (String::new(), "joe"));
        assert!(isupport.is_op("a") && !isupport.is_op("h"));
        for odd in ["PREFIX=", "PREFIX=(", "PREFIX=()@", "CHANMODES=,,"] {
            isupport.take(odd);
            isupport.split_ranks("@+\u{e9}");
            isupport.is_op("o");
        }
        isupport.take("PREFIX=(o)\u{e9}@");
        assert_eq!(isupport.split_ranks("@joe").1, "joe");
    }

    #[test]
    fn tokens_are_taken_in() {
        let mut isupport = Isupport::default();
        for token in ["CASEMAPPING=ascii", "BOT=B", "NICKLEN=9"] {
            isupport.take(token);
        }
        assert_eq!(isupport.casemapping, Casemapping::Ascii);
        assert_eq!(isupport.bot_mode.as_deref(), Some("B"));
        assert_eq!(isupport.nick_length, Some(9));
    }
}

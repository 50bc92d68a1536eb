//! The parser of MODE: which change takes which parameter. Pure.

use super::isupport::Isupport;

/// One change of a channel's modes.
#[derive(Debug, PartialEq, Eq)]
pub struct ModeChange<'a> {
    pub is_set: bool,
    pub mode: char,
    /// Nothing where the mode takes none, or the server has sent too few.
    pub param: Option<&'a str>,
}

/// Cuts `+o-v joe ann` into its changes. Modes that give a rank take a parameter always; of the
/// kinds of CHANMODES, the first two always, the third when it is set, the fourth never.
pub fn parse_modes<'a>(
    changes: &str,
    params: &[&'a str],
    isupport: &Isupport,
) -> Vec<ModeChange<'a>> {
    let mut parsed = Vec::new();
    let mut is_set = true;
    let mut params = params.iter();
    for mode in changes.chars() {
        if mode == '+' || mode == '-' {
            is_set = mode == '+';
            continue;
        }
        let kinds_with_param = if is_set { 3 } else { 2 };
        let mut kinds = isupport.channel_modes.split(',').take(kinds_with_param);
        let is_rank = isupport.rank_modes.contains(mode);
        let takes_param = is_rank || kinds.any(|kind| kind.contains(mode));
        parsed.push(ModeChange {
            is_set,
            mode,
            param: if takes_param {
                params.next().copied()
            } else {
                None
            },
        });
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(changes: &str, params: &[&str]) -> Vec<String> {
        let mut isupport = Isupport::default();
        isupport.take("CHANMODES=beI,k,l,imnpst");
        let parsed = parse_modes(changes, params, &isupport);
        let show = |change: &ModeChange| {
            let sign = if change.is_set { '+' } else { '-' };
            format!("{sign}{}{}", change.mode, change.param.unwrap_or(""))
        };
        parsed.iter().map(show).collect()
    }

    #[test]
    fn each_mode_takes_its_parameter() {
        let changes = shown("+bk-o+o", &["*!*@x", "key", "op", "joe"]);
        assert_eq!(changes, ["+b*!*@x", "+kkey", "-oop", "+ojoe"]);
        assert_eq!(shown("+l-l+n", &["5"]), ["+l5", "-l", "+n"]);
        assert_eq!(shown("oo", &["joe"]), ["+ojoe", "+o"], "too few");
        assert_eq!(shown("+-", &["joe"]), [""; 0]);
    }
}

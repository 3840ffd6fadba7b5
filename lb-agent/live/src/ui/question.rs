//! A path and a query of the page → the words of a command of lbctl. Pure. The page can ask only what is listed here, and
//! what it sends is always a value: it follows `=` or `--`.

/// What the page asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageQuestion {
    /// A command that ends.
    Once(Vec<String>),
    /// A command that keeps printing.
    Follow(Vec<String>),
    /// A command that reads the body of the request from its standard input.
    WithInput(Vec<String>),
}

/// Flows of the past that `flows -f` begins with.
const PAST: &str = "--last=200";

/// The flags of `lbctl flows` that the page has fields for.
const FLOW_FLAGS: [&str; 8] =
    ["pod", "from", "to", "namespace", "port", "verdict", "reason", "policy"];

impl PageQuestion {
    /// Returns the question behind a path and a query; `None` if there is none.
    pub(super) fn parse(path: &str, query: &str) -> Option<Self> {
        let once = |words: &[&str]| Some(Self::Once(command(words, &[])));
        match path.strip_prefix("api/")? {
            "status" => once(&["status", "--all"]),
            "services" => once(&["services"]),
            "pods" => once(&["pods"]),
            "pairs" => once(&["flows", "--by", "pod"]),
            "drops" => once(&["drops"]),
            "policies" => once(&["policy", "list"]),
            "policy" => Some(Self::Once(command(&["policy", "show"], &[value(query, "name")?]))),
            "explain" => {
                let ends = [value(query, "from")?, value(query, "to")?];
                Some(Self::Once(command(&["explain"], &ends)))
            }
            "follow" => {
                let mut words = command(&["flows", "-f", PAST], &[]);
                let flag = |name: &&str| Some(format!("--{name}={}", value(query, name)?));
                words.extend(FLOW_FLAGS.iter().filter_map(flag));
                Some(Self::Follow(words))
            }
            "try" => Some(Self::WithInput(command(&["policy", "try", "-f", "-"], &[]))),
            _ => None,
        }
    }
}

/// Returns the words of a command that prints JSON, with these arguments.
fn command(words: &[&str], arguments: &[String]) -> Vec<String> {
    let separator = (!arguments.is_empty()).then_some("--");
    let flags = words.iter().copied().chain(["-o", "json"]).chain(separator).map(str::to_owned);
    flags.chain(arguments.iter().cloned()).collect()
}

/// Returns the value of a parameter; `None` if there is none, or if it is empty.
fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let (_, value) = pairs.find(|(key, _)| key == name)?;
    Some(value.into_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::PageQuestion;

    fn words(path: &str, query: &str) -> Option<String> {
        let question = PageQuestion::parse(path, query)?;
        let (PageQuestion::Once(words)
        | PageQuestion::Follow(words)
        | PageQuestion::WithInput(words)) = question;
        Some(words.join(" "))
    }

    #[test]
    fn questions_are_commands() {
        for (path, query, want) in [
            ("api/status", "", "status --all -o json"),
            ("api/policies", "x=1", "policy list -o json"),
            ("api/policy", "name=shop%2Fweb", "policy show -o json -- shop/web"),
            (
                "api/explain",
                "from=shop/cart&to=svc:db/orders:5432",
                "explain -o json -- shop/cart svc:db/orders:5432",
            ),
            (
                "api/follow",
                "namespace=shop&pod=&verdict=dropped,would-deny",
                "flows -f --last=200 -o json --namespace=shop --verdict=dropped,would-deny",
            ),
        ] {
            assert_eq!(words(path, query).as_deref(), Some(want), "{path}?{query}");
        }
    }

    #[test]
    fn values_are_never_flags() {
        let got = words("api/explain", "from=--help&to=-o");
        assert_eq!(got.as_deref(), Some("explain -o json -- --help -o"));
        let got = words("api/follow", "pod=--pin-dir%3D/tmp&unknown=--x");
        assert_eq!(got.as_deref(), Some("flows -f --last=200 -o json --pod=--pin-dir=/tmp"));
    }

    #[test]
    fn nothing_else_can_be_asked() {
        for (path, query) in [
            ("api/", ""),
            ("api", ""),
            ("status", ""),
            ("api/sysdump", ""),
            ("api/../status", ""),
            ("api/policy", ""),
            ("api/policy", "name="),
            ("api/explain", "from=a"),
        ] {
            assert_eq!(words(path, query), None, "{path}?{query}");
        }
    }

    #[test]
    fn only_the_trial_of_a_policy_has_an_input() {
        assert!(matches!(PageQuestion::parse("api/try", ""), Some(PageQuestion::WithInput(_))));
        assert!(matches!(PageQuestion::parse("api/follow", ""), Some(PageQuestion::Follow(_))));
    }
}

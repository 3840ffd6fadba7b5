//! The two text formats of a scrape: which one a client asks for, and OpenMetrics text into the Prometheus text format 0.0.4.
//! It knows nothing of this agent's metrics.
#![forbid(unsafe_code)]

use std::cmp::Reverse;

use mime::Mime;

/// A format of `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextFormat {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Prometheus,
}

impl TextFormat {
    /// The `Content-Type` of an answer.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Returns the format that an `Accept` header prefers (RFC 9110, 12.5.1). Like Prometheus' client libraries, the Prometheus
    /// format is the answer to wildcards, to no header, and to a header that names neither format: a scraper that cannot read
    /// the answer says so by its `Content-Type`.
    pub(crate) fn negotiate(accept: &str) -> Self {
        let ranges = accept.split(',').filter_map(|range| range.trim().parse::<Mime>().ok());
        let mut wanted: Vec<(u16, Self)> =
            ranges.filter_map(|range| Some((quality(&range)?, Self::of(&range)?))).collect();
        // A stable sort: of equals, the first one.
        wanted.sort_by_key(|(quality, _)| Reverse(*quality));
        wanted.first().map_or(Self::Prometheus, |(_, format)| *format)
    }

    /// The format that answers a media range.
    fn of(range: &Mime) -> Option<Self> {
        let version = range.get_param("version").map(|version| version.as_str().to_owned());
        let is_version =
            |known: &[&str]| version.as_deref().is_none_or(|version| known.contains(&version));
        match (range.type_().as_str(), range.subtype().as_str()) {
            // 0.0.1 is the draft of 1.0.0, and readers of it take both.
            ("application", "openmetrics-text") if is_version(&["1.0.0", "0.0.1"]) => {
                Some(Self::OpenMetrics)
            }
            ("text", "plain") if is_version(&["0.0.4"]) => Some(Self::Prometheus),
            ("text" | "*", "*") => Some(Self::Prometheus),
            _ => None,
        }
    }
}

/// The weight of a range in thousandths; `None` for 0, which is a refusal, and for what is not a number.
fn quality(range: &Mime) -> Option<u16> {
    let quality = match range.get_param("q") {
        Some(quality) => quality.as_str().parse::<f32>().ok()?,
        None => 1.0,
    };
    (quality > 0.0 && quality <= 1.0).then_some((quality * 1000.0).round() as u16)
}

/// Converts OpenMetrics text, as `prometheus_client` writes it, to the Prometheus text format 0.0.4. There, a family has the
/// name of its samples, an info is a gauge, and neither units nor an end are written.
pub(crate) fn prometheus_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // Comes before the type, which decides about the name.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some(help) = help.take() {
                text += &format!("# HELP {name}{suffix} {help}\n");
            }
            text += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{TextFormat, prometheus_text};

    #[test]
    fn the_preferred_format_is_answered() {
        use TextFormat::{OpenMetrics, Prometheus};
        // The first two are what Prometheus 3 sends, without and with protobuf.
        for (accept, want) in [
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
                 text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1",
                Prometheus,
            ),
            ("application/openmetrics-text", OpenMetrics),
            ("application/openmetrics-text; version=0.0.1", OpenMetrics),
            ("application/openmetrics-text; version=2.0.0", Prometheus),
            ("application/openmetrics-text; q=0, text/plain; q=0.1", Prometheus),
            ("application/openmetrics-text; q=0", Prometheus),
            ("text/plain; q=0.5, application/openmetrics-text; q=0.51", OpenMetrics),
            ("text/plain, application/openmetrics-text", Prometheus),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("application/openmetrics-text; q=much", Prometheus),
            ("APPLICATION/OpenMetrics-Text; Q=0.9, */*; q=0.1", OpenMetrics),
            ("text/*", Prometheus),
            ("*/*", Prometheus),
            ("image/png", Prometheus),
            ("text/plain; version=0.0.3", Prometheus),
            ("", Prometheus),
            ("nonsense,,;q=1", Prometheus),
        ] {
            assert_eq!(TextFormat::negotiate(accept), want, "{accept}");
        }
    }

    #[test]
    fn families_have_the_names_of_their_samples() {
        let openmetrics = "# HELP lb_drops Dropped packets.\n# TYPE lb_drops counter\nlb_drops_total{reason=\"A # B\"} 1\n\
            # HELP lb_build Version.\n# TYPE lb_build info\nlb_build_info{version=\"1\"} 1\n\
            # HELP up_seconds Time.\n# TYPE up_seconds gauge\n# UNIT up_seconds seconds\nup_seconds 0.5\n\
            # HELP took_seconds Time.\n# TYPE took_seconds histogram\ntook_seconds_sum 1.0\ntook_seconds_count 1\n\
            took_seconds_bucket{le=\"+Inf\"} 1\n# HELP x X.\n# TYPE x unknown\nx 1\n# EOF\n";
        let want = "# HELP lb_drops_total Dropped packets.\n# TYPE lb_drops_total counter\nlb_drops_total{reason=\"A # B\"} 1\n\
            # HELP lb_build_info Version.\n# TYPE lb_build_info gauge\nlb_build_info{version=\"1\"} 1\n\
            # HELP up_seconds Time.\n# TYPE up_seconds gauge\nup_seconds 0.5\n\
            # HELP took_seconds Time.\n# TYPE took_seconds histogram\ntook_seconds_sum 1.0\ntook_seconds_count 1\n\
            took_seconds_bucket{le=\"+Inf\"} 1\n# HELP x X.\n# TYPE x untyped\nx 1\n";
        assert_eq!(prometheus_text(openmetrics), want);
    }
}

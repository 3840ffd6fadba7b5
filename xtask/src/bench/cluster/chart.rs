//! Horizontal bars as an SVG image, in groups below headings.

use super::record::{Record, Way};

const WIDTH: f64 = 960.0;
/// Where the bars begin.
const LEFT: f64 = 200.0;
/// Where a bar of the full scale ends. The texts of all bars stand to the right of it.
const RIGHT: f64 = 720.0;
const BAR: f64 = 13.0;
const GAP: f64 = 7.0;
const HEADING: f64 = 30.0;
const TOP: f64 = 86.0;
const COLORS: [&str; 6] = ["#9aa5b1", "#d9822b", "#2563a8", "#3f8f4f", "#8a4fa3", "#b0413e"];

/// A chart of ratios.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) subtitle: String,
    /// A name for each bar of a group.
    pub(super) legend: Vec<String>,
    pub(super) groups: Vec<Group>,
}

/// Bars that belong together.
pub(super) struct Group {
    /// Shown above the first group that has it.
    pub(super) heading: String,
    pub(super) label: String,
    /// Length and text of each bar; none where nothing was measured.
    pub(super) bars: Vec<Option<(f64, String)>>,
}

/// The chart of one run: how the ways through a Service compare to straight.
pub(super) fn of(record: &Record) -> Chart {
    let group = |row: &super::record::Row| {
        let bars = [(Way::ClusterIp, row.cluster_ip_ratio), (Way::NodePort, row.node_port_ratio)];
        let bar = |(way, ratio): (Way, crate::bench::statistics::Ratio)| {
            Some((ratio.main(), row.level(way).to_string()))
        };
        Group {
            heading: row.ends(),
            label: row.what.name().to_owned(),
            bars: bars.map(bar).to_vec(),
        }
    };
    Chart {
        title: format!("Services by {} against straight to the Pod", record.label),
        subtitle: "median latency straight ÷ this, of streams rate ÷ straight; more is better"
            .to_owned(),
        legend: [Way::ClusterIp, Way::NodePort].map(|way| way.name().to_owned()).to_vec(),
        groups: record.rows.iter().map(group).collect(),
    }
}

impl Chart {
    /// The image.
    pub(super) fn svg(&self) -> String {
        let values = self.groups.iter().flat_map(|group| group.bars.iter().flatten());
        let most = values.map(|(value, _)| *value).fold(1.0, f64::max);
        let step = if most > 4.0 {
            1.0
        } else if most > 1.6 {
            0.5
        } else {
            0.25
        };
        let full = (most / step).ceil() * step;
        let x = |value: f64| LEFT + (RIGHT - LEFT) * value / full;
        let (bars, bottom) = self.bars(&x);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n",
            height = bottom + 30.0
        );
        svg += &text(16.0, 26.0, "font-size=\"17\" font-weight=\"bold\"", &self.title);
        svg += &text(16.0, 44.0, "fill=\"#555\"", &self.subtitle);
        let mut at = 16.0;
        for (nth, name) in self.legend.iter().enumerate() {
            svg += &format!(
                "<rect x=\"{at}\" y=\"56\" width=\"12\" height=\"12\" fill=\"{}\"/>\n",
                color(nth)
            );
            svg += &text(at + 17.0, 66.0, "", name);
            at += 17.0 + 24.0 + 6.5 * name.chars().count() as f64;
        }
        for nth in 0..=(full / step).round() as usize {
            let value = nth as f64 * step;
            let (width, color) = if value == 1.0 { (1.5, "#333") } else { (1.0, "#ddd") };
            svg += &format!(
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"{color}\" stroke-width=\"{width}\"/>\n",
                x(value)
            );
            svg += &text(
                x(value),
                bottom + 16.0,
                "text-anchor=\"middle\" fill=\"#555\"",
                &format!("{value}"),
            );
        }
        svg + &bars + "</svg>\n"
    }

    /// The bars with their labels, and where they end.
    fn bars(&self, x: &dyn Fn(f64) -> f64) -> (String, f64) {
        let (mut svg, mut y, mut heading) = (String::new(), TOP, "");
        for group in &self.groups {
            if group.heading != heading {
                heading = &group.heading;
                y += HEADING;
                svg += &text(16.0, y - 9.0, "font-weight=\"bold\"", heading);
            }
            let middle = y + BAR * group.bars.len() as f64 / 2.0 + 4.0;
            svg += &text(LEFT - 10.0, middle, "text-anchor=\"end\"", &group.label);
            for (nth, bar) in group.bars.iter().enumerate() {
                if let Some((value, said)) = bar {
                    svg += &format!(
                        "<rect class=\"bar\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\n",
                        x(*value) - LEFT,
                        BAR - 2.0,
                        color(nth)
                    );
                    let said = format!("{value:.2} ({said})");
                    svg += &text(RIGHT + 12.0, y + BAR - 3.5, "font-size=\"10\"", &said);
                }
                y += BAR;
            }
            y += GAP;
        }
        (svg, y)
    }
}

fn color(nth: usize) -> &'static str {
    COLORS.get(nth % COLORS.len()).copied().unwrap_or("black")
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::record, Chart, Group, LEFT, RIGHT, of};

    #[test]
    fn a_run_has_two_bars_a_row() {
        let svg = of(&record("lb & co", 10_000.0, 9_000.0)).svg();
        assert_eq!(svg.matches("<rect class=\"bar\"").count(), 2 * 2);
        assert!(svg.contains("Services by lb &amp; co against"), "{svg}");
        assert!(svg.contains("0.90 (111.1 µs, 9000/s)"), "{svg}");
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }

    #[test]
    fn the_scale_fits_the_longest_bar_and_holes_stay_empty() {
        let bars = vec![Some((2.0, String::new())), None, Some((1.0, String::new()))];
        let group = Group { heading: "h".to_owned(), label: "l".to_owned(), bars };
        let chart = Chart {
            title: String::new(),
            subtitle: String::new(),
            legend: Vec::new(),
            groups: vec![group],
        };
        let svg = chart.svg();
        assert_eq!(svg.matches("<rect class=\"bar\"").count(), 2);
        assert!(svg.contains(&format!("width=\"{:.1}\"", RIGHT - LEFT)), "{svg}");
        assert!(svg.contains(&format!("width=\"{:.1}\"", (RIGHT - LEFT) / 2.0)), "{svg}");
    }
}

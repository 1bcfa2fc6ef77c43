//! The two tables that the official tool leaves behind, in its own form.

use std::fmt::Write as _;

use super::DavisReport;

impl DavisReport {
    /// What the official tool writes to `global_results-….csv`: a header and one row.
    pub fn global_csv(&self) -> String {
        let g = &self.global;
        let figures = [g.jf_mean, g.j_mean, g.j_recall, g.j_decay, g.f_mean, g.f_recall, g.f_decay];
        format!(
            "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n{}\n",
            figures.map(number).join(",")
        )
    }

    /// What the official tool writes to `per-sequence_results-….csv`: a row for each object of
    /// each sequence, `<sequence>_<object>`.
    pub fn per_sequence_csv(&self) -> String {
        let mut text = "Sequence,J-Mean,F-Mean\n".to_owned();
        for (name, sequence) in &self.sequences {
            for (id, figures) in &sequence.objects {
                let (j, f) = (number(figures.j_mean), number(figures.f_mean));
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{},{j},{f}", quoted(&format!("{name}_{id}")));
            }
        }
        text
    }
}

/// Three decimals; nothing where a figure is undefined.
fn number(value: f64) -> String {
    if value.is_nan() { String::new() } else { format!("{value:.3}") }
}

/// Quoted where the name would break the row.
fn quoted(name: &str) -> String {
    if name.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_the_official_tool_rounds_them() {
        // What Python's "%.3f" gives: ties of exact binary fractions go to the even digit.
        let pairs = [
            (0.0625, "0.062"),
            (0.1875, "0.188"),
            (0.3125, "0.312"),
            (-0.0625, "-0.062"),
            (0.9995, "1.000"),
            (-0.0001, "-0.000"),
            (1.0, "1.000"),
            (f64::NAN, ""),
        ];
        for (value, text) in pairs {
            assert_eq!(number(value), text, "{value}");
        }
        assert_eq!(quoted("a,b"), "\"a,b\"");
    }
}

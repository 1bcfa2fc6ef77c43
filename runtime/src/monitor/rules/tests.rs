use std::path::Path;

use super::*;
use crate::bundle::ConceptNames;
use crate::monitor::baseline::{Baseline, Pairs};

fn reference() -> Reference {
    let baseline = Baseline {
        frames: 1,
        codebook: String::new(),
        area: vec![0.2; 5],
        occurrence: vec![1.0; 5],
        segments: vec![100.0; 5],
        low_similarity: vec![0.5; 5],
        pairs: Pairs::new(5),
    };
    let text = "[concept.1]\nname = \"person\"\n[concept.3]\nname = \"person\"\n[concept.4]\nname = \"Don't\"";
    let names = ConceptNames::parse(text, Path::new("concepts.toml"), 5).unwrap();
    Reference::new(&baseline, &names)
}

fn readings() -> Readings {
    let mut readings = Readings::new(&[2.0, 60.0], 5, 0.01);
    readings.area.add(0.0, &[0.1, 0.06, 0.0, 0.0, 0.5].into_iter());
    readings.presence.add(0.0, &[1.0, 1.0, 0.0, 0.0, 1.0].into_iter());
    readings.novelty.add(0.0, &std::iter::once(0.3));
    readings.drift = 0.25;
    readings.frozen = true;
    readings
}

fn load(when: &str) -> Result<RuleSet, RuleError> {
    let text = format!("# rules\n[[rule]]\nname = \"r\"\nwhen = {when:?}\n");
    RuleSet::parse(&text, Path::new("rules.toml"), &reference(), &[2.0, 60.0])
}

#[test]
fn conditions_hold_as_they_read() {
    for (when, expected) in [
        ("area('person') > 0.05", true),
        ("area(\"person\", 60s) >= 0.07", false),
        ("area(3) > 0.05", true),
        ("area(\"Don't\") / 2 - 0.05 > 2 * area(0) - 0.01", true),
        ("presence('person', 1min) > 0.5 and not covered", true),
        ("covered or frozen and novelty() < 0.3", false),
        ("(covered or frozen) and novelty(2s) <= 0.3", true),
        ("not (drift() > 0.2)", false),
        ("not drift() > 0.3", true),
        ("-area(0) < 0 for 2s", true),
        ("1 / area(2) > 0 or 1 / area(2) <= 0", false),
        ("1 - 2 - 3 < -3.5", true),
        ("drift_score() <= 0 for 500ms", true),
        ("not not frozen", true),
    ] {
        let set = load(when).unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_eq!(set.rules[0].holds(&readings()), expected, "{when}");
    }
}

#[test]
fn times_and_concepts_are_kept() {
    let text = "[[rule]]\nname = \"r\"\nwhen = \"area('person') > area(0) for 2min\"\nclear_after = \"500ms\"\nmessage = \"m\"";
    let set = RuleSet::parse(text, Path::new("rules.toml"), &reference(), &[2.0]).unwrap();
    let rule = &set.rules[0];
    assert_eq!((rule.hold, rule.clear, rule.message()), (120.0, 0.5, "m"));
    assert_eq!(rule.concepts(), [1, 0]);
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (when, at, part) in [
        ("area('persn') > 0.05", 6, "no concept has the name 'persn'"),
        ("area('Person') > 0.05", 6, "is it 'person'?"),
        ("area(5) > 0.05", 6, "0 to 4"),
        ("area('person', 3s) > 0", 16, "2s, 60s"),
        ("area('person') + 0.05", 1, "expected a condition"),
        ("frozen > 1", 1, "has no number"),
        ("aera('person') > 1", 1, "`aera` is unknown; there are area"),
        ("area('person' > 1", 15, "expected `,` or `)`"),
        ("area('person) > 1", 18, "expected the closing quote"),
        ("drift() > 0.1 for 2", 20, "a time such as 2s"),
        ("drift() > 0.1 for", 18, "a time such as 2s"),
        ("drift() > 0.1 if", 15, "an operator, `for` or the end"),
        ("drift() >", 10, "a number, a function or `(`"),
        ("", 1, "a number, a function or `(`"),
        ("drift() > 2s", 11, "only behind `for`"),
        ("drift() > 2x", 12, "a unit of ms, s, min or h"),
        ("(drift() > 1", 13, "expected `)`"),
        ("1 < 2 < 3", 1, "expected a number"),
        ("area() > 1", 1, "takes a concept"),
        ("drift() > 1 for 25h", 0, "one day is possible"),
    ] {
        let text = load(when).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(part), "{when}: {text}");
        assert!(text.starts_with("rules.toml, line 4, rule \"r\": "), "{text}");
        if at > 0 {
            assert!(text.contains(&format!(" at character {at} of `when`")), "{when}: {text}");
            let mark = text.lines().last().unwrap();
            assert_eq!(mark.len(), at + 2, "{when}: {text}");
        }
    }
}

#[test]
fn no_text_brings_the_parser_down() {
    for piece in ["(", "-", "not ", "area(", "1 + (", "'", "\u{e4}", "1<", "\n"] {
        let text = piece.repeat(400 / piece.len());
        assert!(grammar::parse(&text).is_err(), "{piece}");
    }
    assert!(grammar::parse(&"1 ".repeat(300)).is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_a_place_inside(text in "[a-z0-9'()<>=+*/., -]{0,60}") {
        if let Err(mistake) = grammar::parse(&text) {
            proptest::prop_assert!(mistake.at <= text.len());
            let _ = point_out(&text, &mistake);
        }
    }
}

#[test]
fn files_with_other_mistakes_are_refused() {
    for (text, part) in [
        ("[[rule]]\nname = \"a\"\nwhen = 3", "line 3"),
        ("[[rule]]\nname = \"a\"\nwen = \"\"", "unknown field"),
        ("[[rule]]\nname = \"\"\nwhen = \"frozen\"", "1 to 80"),
        (
            "[[rule]]\nname = \"a\"\nwhen = \"frozen\"\n[[rule]]\nname = \"a\"\nwhen = \"frozen\"",
            "line 5, rule \"a\": an earlier rule",
        ),
        (
            "[[rule]]\nname = \"a\"\nwhen = \"frozen\"\nclear_after = \"2\"",
            "line 4, rule \"a\": clear_after",
        ),
    ] {
        let message = RuleSet::parse(text, Path::new("rules.toml"), &reference(), &[2.0])
            .unwrap_err()
            .to_string();
        assert!(message.contains(part), "{message}");
    }
}

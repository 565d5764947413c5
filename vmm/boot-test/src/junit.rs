//! The results as JUnit XML, which CI systems show (the format of Ant's junitreport and Maven Surefire).

use std::path::Path;

use super::outcome::{Status, TestOutcome};
use super::results::Results;

/// All results. A reason why nothing could be run is the error of a test case of its own.
pub fn junit(results: &Results) -> String {
    let Results { seconds, timestamp, failed, not_run, tests, error, .. } = results;
    let errors = usize::from(error.is_some());
    let sums = format!(
        "tests=\"{}\" failures=\"{failed}\" errors=\"{errors}\" skipped=\"{not_run}\" \
         time=\"{seconds:.3}\" timestamp=\"{timestamp}\"",
        tests.len() + errors,
    );
    let name = Path::new(&results.spec).file_stem().unwrap_or_default();
    let name = escaped(&name.to_string_lossy());
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites name=\"tinyvmm boot-test\" {sums}>\n\
         \x20 <testsuite name=\"{name}\" {sums}>\n"
    );
    if let Some(error) = error.as_deref().map(escaped) {
        let name = format!("classname=\"{name}\" name=\"tinyvmm boot-test\"");
        text += &format!("    <testcase {name} time=\"0.000\">\n");
        text += &format!("      <error message=\"{error}\">{error}</error>\n    </testcase>\n");
    }
    let skipped = if results.interrupted { "interrupted" } else { "not run" };
    for outcome in tests {
        text += &case(&name, outcome, skipped);
    }
    text + "  </testsuite>\n</testsuites>\n"
}

fn case(suite: &str, outcome: &TestOutcome, skipped: &str) -> String {
    let (name, seconds) = (escaped(outcome.name), outcome.seconds);
    let timestamp = outcome.runs.first().map(|run| format!(" timestamp=\"{}\"", run.timestamp));
    let timestamp = timestamp.unwrap_or_default();
    let result = match outcome.result {
        Status::Passed => String::new(),
        Status::NotRun => format!("      <skipped message=\"{skipped}\"/>\n"),
        Status::Failed => {
            let message = escaped(&outcome.reasons.join("; "));
            let logs = outcome.logs().map(|log| format!("log: {log}"));
            let lines = outcome.reasons.iter().cloned().chain(logs);
            let lines = lines.chain(outcome.last_lines().iter().cloned());
            let text: String = lines.map(|line| escaped(&line) + "\n").collect();
            format!("      <failure message=\"{message}\">\n{text}</failure>\n")
        }
    };
    format!(
        "    <testcase classname=\"{suite}\" name=\"{name}\" time=\"{seconds:.3}\"{timestamp}>\n\
         {}{result}    </testcase>\n",
        properties(outcome)
    )
}

/// The median of each figure, and p99 where there are several runs.
fn properties(outcome: &TestOutcome) -> String {
    let property =
        |name: &str, value| format!("        <property name=\"{name}\" value=\"{value}\"/>\n");
    let mut text = String::new();
    for (figure, summary) in &outcome.figures {
        text += &property(figure, summary.median);
        if outcome.runs.len() > 1 {
            text += &property(&format!("{figure}-p99"), summary.p99);
        }
    }
    match text.is_empty() {
        true => text,
        false => format!("      <properties>\n{text}      </properties>\n"),
    }
}

/// `text` for XML 1.0 (2.2 Characters, 2.4 Character Data): quotes and brackets as references, and U+FFFD for invalid
/// characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            // An attribute would turn them into spaces.
            '\t' | '\n' | '\r' => escaped += &format!("&#{};", u32::from(c)),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        assert_eq!(escaped("a<b> & \"c\" 'd'"), "a&lt;b&gt; &amp; &quot;c&quot; &apos;d&apos;");
        assert_eq!(escaped("a\tb\nc\r"), "a&#9;b&#10;c&#13;");
        assert_eq!(
            escaped("\0\x1b[1m\x08 ü \u{ffff}]]>"),
            "\u{fffd}\u{fffd}[1m\u{fffd} ü \u{fffd}]]&gt;"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_printed_the_text_is_xml(text: String) {
            let escaped = escaped(&text);
            let bad = |c: char| "<>\"'".contains(c) || (c as u32) < 0x20;
            prop_assert!(!escaped.contains(bad));
            for rest in escaped.split('&').skip(1) {
                let end = rest.find(';').unwrap();
                prop_assert!(["amp", "lt", "gt", "quot", "apos", "#9", "#10", "#13"].contains(&&rest[..end]));
            }
        }
    }
}

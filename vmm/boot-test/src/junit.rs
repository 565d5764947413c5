//! The results as JUnit XML, which CI systems show (the format of Ant's junitreport and Maven Surefire).

use std::fmt::Write;
use std::path::Path;

use super::outcome::{Outcome, Status};
use super::results::Results;

/// All results. What kept machines from being run is the error of a test case of its own.
pub(super) fn junit(results: &Results) -> String {
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
    if let Some(error) = error {
        let error = escaped(error);
        let _ = writeln!(
            text,
            "    <testcase classname=\"{name}\" name=\"tinyvmm boot-test\" time=\"0.000\">\n      \
             <error message=\"{error}\">{error}</error>\n    </testcase>"
        );
    }
    let skipped = if results.interrupted { "interrupted" } else { "not run" };
    for outcome in tests {
        text += &case(&name, outcome, skipped);
    }
    text + "  </testsuite>\n</testsuites>\n"
}

fn case(suite: &str, outcome: &Outcome, skipped: &str) -> String {
    let name = escaped(&outcome.test.name);
    let seconds = outcome.seconds;
    let mut text =
        format!("    <testcase classname=\"{suite}\" name=\"{name}\" time=\"{seconds:.3}\"");
    if let Some(first) = outcome.runs.first() {
        let _ = write!(text, " timestamp=\"{}\"", first.timestamp);
    }
    text += ">\n";
    text += &properties(outcome);
    match outcome.result {
        Status::Passed => {}
        Status::NotRun => {
            let _ = writeln!(text, "      <skipped message=\"{skipped}\"/>");
        }
        Status::Failed => {
            let message = escaped(&outcome.reasons.join("; "));
            let _ = writeln!(text, "      <failure message=\"{message}\">");
            let logs = outcome.logs().map(|log| format!("log: {log}"));
            let lines = outcome.reasons.iter().cloned().chain(logs);
            for line in lines.chain(outcome.last_lines().iter().cloned()) {
                text += &escaped(&line);
                text.push('\n');
            }
            text += "</failure>\n";
        }
    }
    text + "    </testcase>\n"
}

/// The median of each figure, and p99 where there are several runs.
fn properties(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: f64| {
        let _ = writeln!(text, "        <property name=\"{name}\" value=\"{value}\"/>");
    };
    for (figure, summary) in &outcome.figures {
        add(figure, summary.median);
        if outcome.runs.len() > 1 {
            add(&format!("{}-p99", figure), summary.p99);
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("      <properties>\n{text}      </properties>\n")
}

/// `text` as XML 1.0 can hold it (2.2 Characters, 2.4 Character Data): with quotes and brackets as
/// references, and U+FFFD for what is no character there.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            // In an attribute they would be spaces.
            '\t' | '\n' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
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

//! The results as JUnit XML, which CI systems show (the format of Ant's junitreport and Maven Surefire).

use std::fmt::Write;

use super::outcome::{Outcome, Status};

/// All results of the spec `name`.
pub(super) fn junit(name: &str, outcomes: &[Outcome], seconds: f64) -> String {
    let count = |status| outcomes.iter().filter(|outcome| outcome.status == status).count();
    let sums = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" time=\"{seconds:.3}\"",
        outcomes.len(),
        count(Status::Failed),
        count(Status::NotRun)
    );
    let name = escaped(name);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites name=\"tinyvmm boot-test\" {sums}>\n\
         \x20 <testsuite name=\"{name}\" {sums}>\n"
    );
    for outcome in outcomes {
        text += &case(&name, outcome);
    }
    text + "  </testsuite>\n</testsuites>\n"
}

fn case(suite: &str, outcome: &Outcome) -> String {
    let name = escaped(&outcome.test.name);
    let seconds = outcome.seconds();
    let mut text =
        format!("    <testcase classname=\"{suite}\" name=\"{name}\" time=\"{seconds:.3}\"");
    match outcome.status {
        Status::Passed => return text + "/>\n",
        Status::NotRun => text += ">\n      <skipped message=\"interrupted\"/>\n",
        Status::Failed => {
            let message = escaped(&outcome.reasons.join("; "));
            let _ = writeln!(text, ">\n      <failure message=\"{message}\">");
            let logs = outcome.logs().map(|log| format!("log: {log}"));
            let lines = outcome.reasons.iter().cloned().chain(logs);
            for line in lines.chain(outcome.tail().iter().cloned()) {
                text += &escaped(&line);
                text.push('\n');
            }
            text += "</failure>\n";
        }
    }
    text + "    </testcase>\n"
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

//! Amounts, numbers and dates as the readers of a language write them. Pure.
//!
//! Invariant: nothing fails. What cannot be understood comes back as text, so that an odd value shows as it was given
//! instead of stopping the mail.

use chrono::{DateTime, Datelike, NaiveDate, Timelike};
use chrono_tz::Tz;
use serde_json::Value;

/// U+00A0, before a unit: `450 FCFA` is never broken over two lines.
const NO_BREAK: char = '\u{A0}';
/// U+202F, between groups of three digits.
const NARROW: char = '\u{202F}';
/// More digits than this is not an amount.
const DIGITS_MAX: usize = 40;
/// Most decimals of a number that is not money.
const DECIMALS_MAX: usize = 4;

const MONTHS_FR: [&str; 12] = [
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
];
const MONTHS_EN: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Whose way of writing figures and dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `1 234,5` and `21 février 2026 à 15 h 30`.
    French,
    /// `1,234.5` and `21 February 2026 at 15:30`: day first, 24 hours, so that nobody takes a day for a month.
    English,
    /// Of a language whose words are not known here: `1 234.5` and `2026-02-21 15:30`, which nobody misreads.
    Neutral,
}

impl Style {
    /// That of a locale's language.
    pub(super) fn of(locale: &str) -> Self {
        match locale.split('-').next() {
            Some("fr") => Self::French,
            Some("en") => Self::English,
            _ => Self::Neutral,
        }
    }

    const fn group(self) -> char {
        if matches!(self, Self::English) { ',' } else { NARROW }
    }

    const fn point(self) -> char {
        if matches!(self, Self::French) { ',' } else { '.' }
    }
}

/// A value as text: what `{{x}}` would print, but for lists (items and commas, no brackets) and objects (JSON).
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Number(_) => match decimal(value) {
            Some(number) => number.plain(),
            None => value.to_string(),
        },
        Value::Bool(_) | Value::Object(_) => value.to_string(),
    }
}

/// A number in decimal digits: exact, as it was written.
struct Decimal {
    negative: bool,
    /// No leading zeros but for zero itself.
    whole: String,
    /// No trailing zeros.
    fraction: String,
    /// `1.234` may be a thousand with a point or one and a bit: the reader of money must not have to guess.
    ambiguous: bool,
}

impl Decimal {
    fn is_zero(&self) -> bool {
        self.whole == "0" && self.fraction.is_empty()
    }

    fn sign(&self) -> &'static str {
        if self.negative && !self.is_zero() { "-" } else { "" }
    }

    fn plain(&self) -> String {
        let point = if self.fraction.is_empty() { "" } else { "." };
        format!("{}{}{point}{}", self.sign(), self.whole, self.fraction)
    }

    fn as_f64(&self) -> f64 {
        self.plain().parse().unwrap_or(0.0)
    }

    /// Keeps this many decimals; a half goes up.
    fn rounded(mut self, decimals: usize) -> Self {
        if self.fraction.len() <= decimals {
            return self;
        }
        let up = self.fraction.as_bytes()[decimals] >= b'5';
        self.fraction.truncate(decimals);
        if up {
            let mut digits = format!("0{}{}", self.whole, self.fraction).into_bytes();
            for digit in digits.iter_mut().rev() {
                if *digit < b'9' {
                    *digit += 1;
                    break;
                }
                *digit = b'0';
            }
            let digits: String = digits.into_iter().map(char::from).collect();
            let (whole, fraction) = digits.split_at(digits.len() - decimals);
            self.whole = whole.to_owned();
            self.fraction = fraction.to_owned();
        }
        self.normal()
    }

    fn normal(mut self) -> Self {
        let whole = self.whole.trim_start_matches('0');
        self.whole = if whole.is_empty() { "0".to_owned() } else { whole.to_owned() };
        self.fraction.truncate(self.fraction.trim_end_matches('0').len());
        self
    }

    /// `1 234,5`, `1,234.5`.
    fn in_style(&self, style: Style) -> String {
        let mut out = String::with_capacity(self.whole.len() * 2 + self.fraction.len() + 2);
        out.push_str(self.sign());
        for (index, digit) in self.whole.char_indices() {
            if index > 0 && (self.whole.len() - index).is_multiple_of(3) {
                out.push(style.group());
            }
            out.push(digit);
        }
        if !self.fraction.is_empty() {
            out.push(style.point());
            out.push_str(&self.fraction);
        }
        out
    }
}

/// Reads a number, or a text that holds one: `450000`, `450 000`, `450000.0`, `1 234,5`.
fn decimal(value: &Value) -> Option<Decimal> {
    let written = match value {
        Value::Number(number) => match number.as_f64() {
            // `to_string` of a float can use an exponent; its `Display` never does.
            Some(float) if number.is_f64() => float.to_string(),
            _ => number.to_string(),
        },
        Value::String(text) => text.chars().filter(|c| !c.is_whitespace()).collect(),
        _ => return None,
    };
    let (negative, digits) = match written.strip_prefix(['-', '\u{2212}']) {
        Some(rest) => (true, rest),
        None => (false, written.strip_prefix('+').unwrap_or(&written)),
    };
    let (whole, fraction) = digits.split_once(['.', ',']).unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let separated = digits.len() > whole.len();
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || separated && fraction.is_empty() {
        return None;
    }
    if whole.len() + fraction.len() > DIGITS_MAX && value.is_string() {
        return None;
    }
    let thousands = fraction.len() == 3 && whole.len() <= 3 && value.is_string();
    if thousands && digits.contains(',') {
        return None;
    }
    let (whole, fraction) = (whole.to_owned(), fraction.to_owned());
    Some(Decimal { negative, whole, fraction, ambiguous: thousands }.normal())
}

/// The number in a value, if there is one.
pub(super) fn number_of(value: &Value) -> Option<f64> {
    decimal(value).map(|number| number.as_f64())
}

/// `450 000 FCFA`; two decimals when there are any. People in either language call the XOF so.
pub(super) fn money(value: &Value, style: Style) -> String {
    if is_blank(value) {
        return String::new();
    }
    let amount = match decimal(value).filter(|number| !number.ambiguous).map(|number| number.rounded(2)) {
        Some(mut number) => {
            if number.fraction.len() == 1 {
                number.fraction.push('0');
            }
            number.in_style(style)
        }
        None => text(value).trim().to_owned(),
    };
    format!("{amount}{NO_BREAK}FCFA")
}

/// `1 234,5`.
pub(super) fn number(value: &Value, style: Style) -> String {
    decimal(value).map_or_else(|| text(value), |number| number.rounded(DECIMALS_MAX).in_style(style))
}

/// `99,95 %`; in English `99.95%`.
pub(super) fn percent(value: &Value, style: Style) -> String {
    if is_blank(value) {
        return String::new();
    }
    // A producer that already wrote the sign must not get a second one.
    let bare = match value {
        Value::String(text) => Value::String(text.trim().trim_end_matches('%').trim_end().to_owned()),
        other => other.clone(),
    };
    let number = number(&bare, style);
    if style == Style::English { format!("{number}%") } else { format!("{number}{NO_BREAK}%") }
}

/// `21 février 2026`, of RFC 3339 (its day in `zone`) or YYYY-MM-DD.
pub(super) fn date(value: &Value, style: Style, zone: Tz) -> String {
    let written = text(value);
    let day = match DateTime::parse_from_rfc3339(written.trim()) {
        Ok(time) => Some(time.with_timezone(&zone).date_naive()),
        Err(_) => NaiveDate::parse_from_str(written.trim(), "%Y-%m-%d").ok(),
    };
    day.map_or(written, |day| long_date(day, style))
}

/// `21 février 2026 à 15 h 30`, of RFC 3339, in `zone`. Broken before `à` only, where a line is too short for it.
pub(super) fn datetime(value: &Value, style: Style, zone: Tz) -> String {
    let written = text(value);
    let Ok(time) = DateTime::parse_from_rfc3339(written.trim()) else { return written };
    let time = time.with_timezone(&zone);
    let (day, hour, minute) = (long_date(time.date_naive(), style), time.hour(), time.minute());
    match style {
        Style::French => format!("{day} à{NO_BREAK}{hour}{NO_BREAK}h{NO_BREAK}{minute:02}"),
        Style::English => format!("{day} at{NO_BREAK}{hour:02}:{minute:02}"),
        Style::Neutral => format!("{day} {hour:02}:{minute:02}"),
    }
}

fn long_date(day: NaiveDate, style: Style) -> String {
    let (number, month, year) = (day.day(), day.month0() as usize, day.year());
    match style {
        Style::French if number == 1 => format!("1er {} {year}", MONTHS_FR[month]),
        Style::French => format!("{number} {} {year}", MONTHS_FR[month]),
        Style::English => format!("{number} {} {year}", MONTHS_EN[month]),
        Style::Neutral => day.format("%Y-%m-%d").to_string(),
    }
}

/// A month's name, of its name in French or English, or its number: `février`, `February`, 2. Anything else as it is.
pub(super) fn month_name(value: &Value, style: Style) -> String {
    let written = text(value);
    let names = match style {
        Style::French => &MONTHS_FR,
        Style::English => &MONTHS_EN,
        Style::Neutral => return written,
    };
    let plain = written.trim().to_lowercase();
    let month = match plain.parse::<usize>() {
        Ok(number) => number.checked_sub(1),
        Err(_) => (0..12).find(|&month| {
            [MONTHS_FR[month], MONTHS_EN[month]].iter().any(|name| unaccented(name) == unaccented(&plain))
        }),
    };
    month.and_then(|month| names.get(month)).map_or(written, |name| (*name).to_owned())
}

/// Lower case, without the accents that French months have: producers leave them out.
fn unaccented(text: &str) -> String {
    text.to_lowercase().replace(['é', 'è'], "e").replace('û', "u")
}

/// The first form for one, the second for more. French has the first for nothing and for one and a half as well.
pub(super) fn plural<'a>(count: &Value, one: &'a str, many: &'a str, style: Style) -> &'a str {
    match number_of(count) {
        // Exactly one, as it was written.
        #[allow(clippy::float_cmp)]
        Some(number) if style != Style::French => {
            if number.abs() == 1.0 {
                one
            } else {
                many
            }
        }
        Some(number) if number.abs() < 2.0 => one,
        Some(_) => many,
        None if is_blank(count) => one,
        None => many,
    }
}

/// Whole percents, 0 to 100, rounded down: a bar is full only when everything is done.
pub(super) fn percent_of(done: &Value, total: &Value) -> i64 {
    match (number_of(done), number_of(total)) {
        // The cast saturates, and the value is clamped to what fits.
        #[allow(clippy::cast_possible_truncation)]
        (Some(done), Some(total)) if total > 0.0 => (done / total * 100.0 + 1e-9).floor().clamp(0.0, 100.0) as i64,
        _ => 0,
    }
}

/// The lines of a text, or the items of a list, without those that are empty.
pub(super) fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => {
            items.iter().map(|item| text(item).trim().to_owned()).filter(|s| !s.is_empty()).collect()
        }
        other => text(other).split(['\n', '\r']).map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
    }
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Makes the special blanks visible: `_` is U+00A0, `.` between digits stays, `'` is U+202F.
    fn shown(text: &str) -> String {
        text.replace(NO_BREAK, "_").replace(NARROW, "'")
    }

    #[test]
    fn amounts() {
        for (value, want) in [
            (json!(450_000), "450'000_FCFA"),
            (json!(450_000.0), "450'000_FCFA"),
            (json!("450000"), "450'000_FCFA"),
            (json!(" 450 000 "), "450'000_FCFA"),
            (json!("450\u{202F}000"), "450'000_FCFA"),
            (json!("450000.0"), "450'000_FCFA"),
            (json!("1 234,5"), "1'234,50_FCFA"),
            (json!(1234.567), "1'234,57_FCFA"),
            (json!(0.995), "1_FCFA"),
            (json!(999.999), "1'000_FCFA"),
            (json!(0), "0_FCFA"),
            (json!("-0"), "0_FCFA"),
            (json!(-1500), "-1'500_FCFA"),
            (json!(999), "999_FCFA"),
            (json!(12_345_678), "12'345'678_FCFA"),
            (json!(1e21), "1'000'000'000'000'000'000'000_FCFA"),
            (json!("450,000"), "450,000_FCFA"),
            (json!("450.000"), "450.000_FCFA"),
            (json!("1.234.567"), "1.234.567_FCFA"),
            (json!("quatre cents"), "quatre cents_FCFA"),
            (json!("12e3"), "12e3_FCFA"),
            (json!("."), "._FCFA"),
            (json!(null), ""),
            (json!(""), ""),
            (json!(true), "true_FCFA"),
            (json!([1, 2]), "1, 2_FCFA"),
        ] {
            assert_eq!(shown(&money(&value, Style::French)), want, "{value}");
        }
    }

    #[test]
    fn numbers_and_percents() {
        for (value, want) in [
            (json!(1234.5), "1'234,5"),
            (json!("1234,50"), "1'234,5"),
            (json!("0045"), "45"),
            (json!(45), "45"),
            (json!(-0.00001), "0"),
            (json!("1.234"), "1,234"),
            (json!("1,234"), "1,234"),
            (json!("Cotonou Nord"), "Cotonou Nord"),
            (json!(null), ""),
            (json!({"a": 1}), "{\"a\":1}"),
        ] {
            assert_eq!(shown(&number(&value, Style::French)), want, "{value}");
        }
        for (value, want) in [
            (json!(99.95), "99,95_%"),
            (json!("99.950"), "99,95_%"),
            (json!("99,95 %"), "99,95_%"),
            (json!(100), "100_%"),
            (json!(99.999), "99,999_%"),
            (json!("n/a"), "n/a_%"),
            (json!(null), ""),
        ] {
            assert_eq!(shown(&percent(&value, Style::French)), want, "{value}");
        }
    }

    #[test]
    fn dates() {
        let zone = chrono_tz::Africa::PortoNovo;
        for (value, want_date, want_datetime) in [
            (json!("2026-02-21T14:30:00Z"), "21 février 2026", "21 février 2026 à_15_h_30"),
            (json!("2026-03-01T07:05:00+01:00"), "1er mars 2026", "1er mars 2026 à_7_h_05"),
            (json!("2026-12-31T23:30:00.123Z"), "1er janvier 2027", "1er janvier 2027 à_0_h_30"),
            (json!("2026-08-15"), "15 août 2026", "2026-08-15"),
            (json!("2026-02-30"), "2026-02-30", "2026-02-30"),
            (json!("demain"), "demain", "demain"),
            (json!("2026-02-21T14:30:00"), "2026-02-21T14:30:00", "2026-02-21T14:30:00"),
            (json!(null), "", ""),
            (json!(20260221), "20260221", "20260221"),
        ] {
            assert_eq!(date(&value, Style::French, zone), want_date, "{value}");
            assert_eq!(shown(&datetime(&value, Style::French, zone)), want_datetime, "{value}");
        }
    }

    #[test]
    fn plurals_progress_and_lines() {
        for (count, want) in [
            (json!(0), "site"),
            (json!(1), "site"),
            (json!(1.9), "site"),
            (json!(-1), "site"),
            (json!(2), "sites"),
            (json!("45"), "sites"),
            (json!(null), "site"),
            (json!("plusieurs"), "sites"),
        ] {
            assert_eq!(plural(&count, "site", "sites", Style::French), want, "{count}");
        }
        for (done, total, want) in [
            (json!(26), json!(40), 65),
            (json!("26"), json!("40"), 65),
            (json!(0), json!(0), 0),
            (json!(41), json!(40), 100),
            (json!(199), json!(200), 99),
            (json!(-3), json!(40), 0),
            (json!(3), json!(-40), 0),
            (json!(29), json!(100), 29),
            (json!("x"), json!(40), 0),
            (json!(null), json!(null), 0),
        ] {
            assert_eq!(percent_of(&done, &total), want, "{done} of {total}");
        }
        assert_eq!(lines(&json!(" a\r\n\n b \rc")), ["a", "b", "c"]);
        assert_eq!(lines(&json!(["a", 1.0, null, " ", "b\nc"])), ["a", "1", "b\nc"]);
        assert_eq!(lines(&json!(null)), Vec::<String>::new());
        assert_eq!(lines(&json!(45)), ["45"]);
    }

    #[test]
    fn other_languages() {
        use Style::{English, French, Neutral};
        let zone = chrono_tz::Africa::PortoNovo;
        for (locale, style) in
            [("fr", French), ("fr-BJ", French), ("en-GB", English), ("fra", Neutral), ("pt", Neutral)]
        {
            assert_eq!(Style::of(locale), style, "{locale}");
        }
        assert_eq!(shown(&money(&json!(12_000_000_000_i64), English)), "12,000,000,000_FCFA");
        assert_eq!(shown(&money(&json!("1234,5"), English)), "1,234.50_FCFA");
        assert_eq!(shown(&money(&json!("-1234567"), Neutral)), "-1'234'567_FCFA");
        assert_eq!(
            (number(&json!(-1234.5), English), percent(&json!("99,95 %"), English)),
            ("-1,234.5".into(), "99.95%".into())
        );
        assert_eq!(
            (shown(&number(&json!(1234.5), Neutral)), shown(&percent(&json!(7), Neutral))),
            ("1'234.5".into(), "7_%".into())
        );
        let at = json!("2026-03-01T07:05:00+01:00");
        assert_eq!(
            (date(&at, English, zone), shown(&datetime(&at, English, zone))),
            ("1 March 2026".into(), "1 March 2026 at_07:05".into())
        );
        assert_eq!(
            (date(&at, Neutral, zone), datetime(&at, Neutral, zone)),
            ("2026-03-01".into(), "2026-03-01 07:05".into())
        );
        for (count, want) in
            [(json!(0), "sites"), (json!(1), "site"), (json!(-1), "site"), (json!(1.5), "sites"), (json!(2), "sites")]
        {
            assert_eq!(plural(&count, "site", "sites", English), want, "{count}");
        }
        for (month, french, english) in [
            (json!("février"), "février", "February"),
            (json!(" Fevrier"), "février", "February"),
            (json!("AUGUST"), "août", "August"),
            (json!(12), "décembre", "December"),
            (json!("02"), "février", "February"),
            (json!(0), "0", "0"),
            (json!(13), "13", "13"),
            (json!("premier trimestre"), "premier trimestre", "premier trimestre"),
            (json!(null), "", ""),
        ] {
            assert_eq!(
                (month_name(&month, French), month_name(&month, English)),
                (french.into(), english.into()),
                "{month}"
            );
        }
        assert_eq!(month_name(&json!("février"), Neutral), "février");
    }
}

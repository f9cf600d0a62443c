//! Canonical timestamps, as in `runspan.model.timestamps`.

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;
/// The day of the latest start of a span, which a span cannot hold to its end.
pub const LAST_DAY: u64 = i64::MAX as u64 / DAY * DAY;
const FORM: [u8; 24] = *b"0000-00-00T00:00:00.000Z";

/// A time of a document.
#[derive(Clone, Copy, PartialEq)]
pub enum Time {
    /// There is none.
    Absent,
    /// Nanoseconds since 1970.
    At(u64),
    /// A string without the canonical form.
    Other,
}

impl Time {
    pub fn known(self) -> Option<u64> {
        if let Time::At(ns) = self { Some(ns) } else { None }
    }
}

/// The canonical text of a time, if there is one.
pub fn canonical_text(ns: u64, latest: u64) -> Option<[u8; 24]> {
    if ns % MILLISECOND != 0 || ns > latest {
        return None;
    }
    let (year, month, day) = date(ns / DAY);
    let second = ns / SECOND;
    let mut text = FORM;
    for (at, width, number) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600 % 24),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 3, ns / MILLISECOND % 1000),
    ] {
        let mut rest = number;
        for digit in text[at..at + width].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    Some(text)
}

/// What a timestamp says.
pub fn parse(text: &str, latest: u64) -> Time {
    let found = numbers(text.as_bytes()).and_then(|[year, month, day, hour, minute, second, ms]| {
        let days = days(year, month, day)?;
        let ns = days * DAY + (hour * 3600 + minute * 60 + second) * SECOND + ms * MILLISECOND;
        // The same text is made of it only if each of its numbers is in range.
        (canonical_text(ns, latest)? == text.as_bytes()).then_some(ns)
    });
    found.map_or(Time::Other, Time::At)
}

fn numbers(text: &[u8]) -> Option<[u64; 7]> {
    let text: &[u8; 24] = text.try_into().ok()?;
    let number = |part: &[u8]| {
        part.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
    };
    Some([
        number(&text[0..4])?,
        number(&text[5..7])?,
        number(&text[8..10])?,
        number(&text[11..13])?,
        number(&text[14..16])?,
        number(&text[17..19])?,
        number(&text[20..23])?,
    ])
}

/// Year, month and day of a day since 1970. Years begin in March here, so that a leap day is the last one.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// The inverse of `date`.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=2262).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day.checked_sub(1)?;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

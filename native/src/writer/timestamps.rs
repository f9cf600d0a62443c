//! Canonical timestamps to nanoseconds, as `model.timestamps.canonical_ns` does.

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Days that a span's signed 64-bit nanoseconds hold to their end.
const DAYS: i64 = i64::MAX / DAY;

/// Return the nanoseconds since 1970 of `2024-01-15T09:00:01.200Z`; None for any other form and for days out of range.
pub fn canonical_ns(text: &[u8]) -> Option<u64> {
    let text: &[u8; 24] = text.try_into().ok()?;
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
    if separators.iter().any(|&(at, separator)| text[at] != separator) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        text[range]
            .iter()
            .try_fold(0i64, |number, &digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
    };
    let days = days_since_1970(number(0..4)?, number(5..7)?, number(8..10)?)?;
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if days >= DAYS || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    u64::try_from(days * DAY + (hour * 3600 + minute * 60 + second) * SECOND + number(20..23)? * 1_000_000).ok()
}

/// Return the days since 1970-01-01 of a date from 1970 on, or None if there is no such day.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    const BEFORE: [i64; 13] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365];
    let index = usize::try_from(month - 1).ok().filter(|&index| index < 12)?;
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let length = BEFORE[index + 1] - BEFORE[index] + i64::from(is_leap && month == 2);
    if year < 1970 || day < 1 || day > length {
        return None;
    }
    let leap_days_before = |year: i64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let leap_days = leap_days_before(year) - leap_days_before(1970) + i64::from(is_leap && month > 2);
    Some((year - 1970) * 365 + leap_days + BEFORE[index] + day - 1)
}

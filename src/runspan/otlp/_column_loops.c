/* The two inner loops of the exporter in C, with the same results as column_loops.py.
 *
 * tests/otlp/test_column_loops.py runs one case list through both. Without a compiler the package is built without this
 * file.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { MAX_COLUMNS = 64, SPANS_TAG = 0x12, ATTRIBUTES_TAG = 0x4a, START_TAG = 0x39, END_TAG = 0x41, TIMES_SIZE = 18 };
static const int64_t SECOND = 1000000000LL, DAY = 86400LL * 1000000000LL;

/* Nanoseconds. */

static int two_digits(const char *at) {
    unsigned high = (unsigned)(at[0] - '0'), low = (unsigned)(at[1] - '0');
    return high > 9 || low > 9 ? -1 : (int)(high * 10 + low);
}

/* Return the days since 1970-01-01 of a date from 1970 on, or -1 if there is no such day. */
static int64_t days_since_1970(int year, int month, int day) {
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > lengths[month - 1] + (leap && month == 2))
        return -1;
    int last = year - 1;
    int64_t leap_days = (last / 4 - last / 100 + last / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400);
    return (int64_t)(year - 1970) * 365 + leap_days + before[month - 1] + (leap && month > 2) + day - 1;
}

/* Return the nanoseconds of 2024-01-15T09:00:01.200Z, or -1 for any other form and for a day out of range. */
static int64_t canonical_ns(PyObject *value) {
    if (!PyUnicode_CheckExact(value) || !PyUnicode_IS_COMPACT_ASCII(value) || PyUnicode_GET_LENGTH(value) != 24)
        return -1;
    const char *text = (const char *)PyUnicode_1BYTE_DATA(value);
    if (text[4] != '-' || text[7] != '-' || text[10] != 'T' || text[13] != ':' || text[16] != ':' || text[19] != '.' ||
        text[23] != 'Z')
        return -1;
    int century = two_digits(text), year = two_digits(text + 2), month = two_digits(text + 5), day = two_digits(text + 8);
    int hour = two_digits(text + 11), minute = two_digits(text + 14), second = two_digits(text + 17);
    int hundredths = two_digits(text + 20);
    unsigned thousandth = (unsigned)(text[22] - '0');
    if ((century | year | month | day | hour | minute | second | hundredths) < 0 || thousandth > 9 || hour > 23 ||
        minute > 59 || second > 59)
        return -1;
    int64_t days = days_since_1970(century * 100 + year, month, day);
    if (days < 0 || days >= (INT64_MAX - DAY) / DAY + 1 || days * DAY >= INT64_MAX - DAY)
        return -1;
    return days * DAY + (hour * 3600 + minute * 60 + second) * SECOND + (hundredths * 10 + (int)thousandth) * 1000000LL;
}

static PyObject *nanoseconds(PyObject *module, PyObject *values) {
    PyObject *list = PySequence_Fast(values, "nanoseconds() takes a sequence");
    if (list == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
    PyObject *found = PyList_New(count);
    for (Py_ssize_t row = 0; found != NULL && row < count; row++) {
        PyObject *number = PyLong_FromLongLong(canonical_ns(PySequence_Fast_GET_ITEM(list, row)));
        if (number == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, row, number);
    }
    Py_DECREF(list);
    return found;
}

/* Spans. */

typedef enum { SAME, CELLS, TEXTS, TIMES, NUMBERS } Kind;

typedef struct {
    Kind kind;
    PyObject *first;  /* SAME: bytes. CELLS: list of bytes. TEXTS, NUMBERS: the key. TIMES: list of starts. Borrowed. */
    PyObject *second; /* TEXTS: list of texts. NUMBERS: list of their texts. TIMES: list of ends. Borrowed. */
} Column;

/* One cell of the row that is being written. The buffer of a text is held until the row is written. */
typedef struct {
    Py_buffer view;
    const char *data;
    Py_ssize_t size;     /* For NUMBERS, the size of the varint. */
    uint64_t start, end; /* For NUMBERS, start is the number. */
} Cell;

static size_t varint_size(uint64_t number) {
    size_t size = 1;
    while (number > 127) {
        number >>= 7;
        size++;
    }
    return size;
}

static char *put_varint(char *out, uint64_t number) {
    while (number > 127) {
        *out++ = (char)(number | 128);
        number >>= 7;
    }
    *out++ = (char)number;
    return out;
}

static char *put_bytes(char *out, const char *data, Py_ssize_t size) {
    memcpy(out, data, (size_t)size);
    return out + size;
}

static char *put_time(char *out, char tag, uint64_t ns) {
    *out++ = tag;
    for (int byte = 0; byte < 8; byte++)
        *out++ = (char)(ns >> (8 * byte));
    return out;
}

/* The lengths inside a string attribute: KeyValue{key, AnyValue{string_value}}. */
typedef struct {
    size_t key_value, any_value;
} Lengths;

static Lengths lengths_of(Py_ssize_t key, Py_ssize_t text) {
    Lengths found;
    found.any_value = 1 + varint_size((uint64_t)text) + (size_t)text;
    found.key_value =
        1 + varint_size((uint64_t)key) + (size_t)key + 1 + varint_size(found.any_value) + found.any_value;
    return found;
}

static size_t attribute_size(Py_ssize_t key, Py_ssize_t text) {
    size_t inner = lengths_of(key, text).key_value;
    return 1 + varint_size(inner) + inner;
}

static char *put_attribute(char *out, PyObject *key, const Cell *cell) {
    Py_ssize_t key_size = PyBytes_GET_SIZE(key);
    Lengths lengths = lengths_of(key_size, cell->size);
    *out++ = ATTRIBUTES_TAG;
    out = put_varint(out, lengths.key_value);
    *out++ = 0x0a;
    out = put_varint(out, (uint64_t)key_size);
    out = put_bytes(out, PyBytes_AS_STRING(key), key_size);
    *out++ = 0x12;
    out = put_varint(out, lengths.any_value);
    *out++ = 0x0a;
    out = put_varint(out, (uint64_t)cell->size);
    return put_bytes(out, cell->data, cell->size);
}

static size_t number_size(Py_ssize_t key, Py_ssize_t digits) {
    size_t inner = 1 + varint_size((uint64_t)key) + (size_t)key + 2 + 1 + (size_t)digits;
    return 1 + varint_size(inner) + inner;
}

/* KeyValue{key, AnyValue{int_value}} */
static char *put_number(char *out, PyObject *key, const Cell *cell) {
    Py_ssize_t key_size = PyBytes_GET_SIZE(key);
    *out++ = ATTRIBUTES_TAG;
    out = put_varint(out, 1 + varint_size((uint64_t)key_size) + (size_t)key_size + 2 + 1 + (size_t)cell->size);
    *out++ = 0x0a;
    out = put_varint(out, (uint64_t)key_size);
    out = put_bytes(out, PyBytes_AS_STRING(key), key_size);
    *out++ = 0x12;
    *out++ = (char)(1 + cell->size);
    *out++ = 0x18;
    return put_varint(out, cell->start);
}

/* Return whether a text is the shortest one of an unsigned integer of at most 18 digits, which fits 64 bits. */
static int is_number(const char *text, Py_ssize_t size, uint64_t *number) {
    if (size < 1 || size > 18 || (text[0] == '0' && size > 1))
        return 0;
    *number = 0;
    for (Py_ssize_t at = 0; at < size; at++) {
        unsigned digit = (unsigned)(text[at] - '0');
        if (digit > 9)
            return 0;
        *number = *number * 10 + digit;
    }
    return 1;
}

static int parse_column(PyObject *given, Py_ssize_t rows, Column *column) {
    *column = (Column){SAME, given, NULL};
    if (PyBytes_CheckExact(given))
        return 0;
    if (PyList_CheckExact(given)) {
        column->kind = CELLS;
        if (PyList_GET_SIZE(given) == rows)
            return 0;
    } else if (PyTuple_CheckExact(given) && PyTuple_GET_SIZE(given) == 2) {
        PyObject *left = PyTuple_GET_ITEM(given, 0), *right = PyTuple_GET_ITEM(given, 1);
        int swapped = PyBytes_CheckExact(right);
        column->first = swapped ? right : left;
        column->second = swapped ? left : right;
        int is_keyed = PyBytes_CheckExact(column->first);
        column->kind = swapped ? NUMBERS : is_keyed ? TEXTS : TIMES;
        if (PyList_CheckExact(column->second) && PyList_GET_SIZE(column->second) == rows &&
            (is_keyed || (PyList_CheckExact(column->first) && PyList_GET_SIZE(column->first) == rows)))
            return 0;
    }
    PyErr_SetString(PyExc_TypeError,
                    "a column is bytes, a list, (key, texts), (numbers, key) or (starts, ends), as long as the others");
    return -1;
}

/* Read a cell and return its size in the row, or -1 with an exception. Sets *is_invalid if it cannot be written. */
static Py_ssize_t read_cell(const Column *column, Py_ssize_t row, PyObject *absent, Py_ssize_t max_bytes, Cell *cell,
                            int *is_invalid) {
    cell->view.obj = NULL;
    cell->size = 0;
    if (column->kind == TIMES) {
        cell->start = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(column->first, row));
        cell->end = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(column->second, row));
        return PyErr_Occurred() ? -1 : TIMES_SIZE;
    }
    int is_keyed = column->kind == TEXTS || column->kind == NUMBERS;
    PyObject *value = column->kind == SAME ? column->first
                                           : PyList_GET_ITEM(is_keyed ? column->second : column->first, row);
    if (PyBytes_CheckExact(value)) {
        cell->data = PyBytes_AS_STRING(value);
        cell->size = PyBytes_GET_SIZE(value);
    } else if (value != absent || !is_keyed) {
        if (PyObject_GetBuffer(value, &cell->view, PyBUF_SIMPLE) < 0)
            return -1;
        cell->data = cell->view.buf;
        cell->size = cell->view.len;
    }
    if (!is_keyed || cell->size == 0)
        return cell->size;
    Py_ssize_t key = PyBytes_GET_SIZE(column->first);
    if (column->kind == TEXTS) {
        *is_invalid |= cell->size > max_bytes;
        return (Py_ssize_t)attribute_size(key, cell->size);
    }
    int is_valid = is_number(cell->data, cell->size, &cell->start);
    *is_invalid |= !is_valid;
    cell->size = is_valid ? (Py_ssize_t)varint_size(cell->start) : 0;
    return is_valid ? (Py_ssize_t)number_size(key, cell->size) : 0;
}

static void write_row(char *out, const Column *columns, const Cell *cells, Py_ssize_t count) {
    for (Py_ssize_t at = 0; at < count; at++) {
        const Cell *cell = &cells[at];
        if (columns[at].kind == TIMES)
            out = put_time(put_time(out, START_TAG, cell->start), END_TAG, cell->end);
        else if (cell->size > 0 && columns[at].kind == TEXTS)
            out = put_attribute(out, columns[at].first, cell);
        else if (cell->size > 0 && columns[at].kind == NUMBERS)
            out = put_number(out, columns[at].first, cell);
        else if (cell->size > 0)
            out = put_bytes(out, cell->data, cell->size);
    }
}

/* Return a row as a span with tag and length, or NULL with an exception. Sets *is_invalid as read_cell does. */
static PyObject *join_row(const Column *columns, Py_ssize_t count, Py_ssize_t row, PyObject *absent,
                          Py_ssize_t max_bytes, int *is_invalid) {
    Cell cells[MAX_COLUMNS];
    PyObject *span = NULL;
    Py_ssize_t read = 0, size = 0;
    *is_invalid = 0;
    while (read < count) {
        Py_ssize_t added = read_cell(&columns[read], row, absent, max_bytes, &cells[read], is_invalid);
        if (added < 0)
            break;
        size += added;
        read++;
    }
    if (read == count) {
        span = PyBytes_FromStringAndSize(NULL, 1 + (Py_ssize_t)varint_size((uint64_t)size) + size);
        if (span != NULL) {
            char *out = PyBytes_AS_STRING(span);
            *out++ = SPANS_TAG;
            write_row(put_varint(out, (uint64_t)size), columns, cells, count);
        }
    }
    while (read > 0)
        if (cells[--read].view.obj != NULL)
            PyBuffer_Release(&cells[read].view);
    return span;
}

static PyObject *join_span_columns(PyObject *module, PyObject *arguments) {
    PyObject *given, *absent;
    Py_ssize_t rows, max_bytes;
    Column columns[MAX_COLUMNS];
    if (!PyArg_ParseTuple(arguments, "O!nnO", &PyList_Type, &given, &rows, &max_bytes, &absent))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(given);
    if (count > MAX_COLUMNS || rows < 0)
        return PyErr_Format(PyExc_ValueError, "at most %d columns", MAX_COLUMNS);
    for (Py_ssize_t at = 0; at < count; at++)
        if (parse_column(PyList_GET_ITEM(given, at), rows, &columns[at]) < 0)
            return NULL;
    PyObject *spans = PyList_New(rows), *invalid = PyList_New(0);
    for (Py_ssize_t row = 0; spans != NULL && invalid != NULL && row < rows; row++) {
        int is_invalid;
        PyObject *span = join_row(columns, count, row, absent, max_bytes, &is_invalid);
        PyObject *index = span != NULL && is_invalid ? PyLong_FromSsize_t(row) : NULL;
        if (span == NULL || (is_invalid && (index == NULL || PyList_Append(invalid, index) < 0)))
            Py_CLEAR(invalid);
        Py_XDECREF(index);
        if (span != NULL)
            PyList_SET_ITEM(spans, row, span);
    }
    if (spans == NULL || invalid == NULL) {
        Py_XDECREF(spans);
        Py_XDECREF(invalid);
        return NULL;
    }
    return Py_BuildValue("(NN)", spans, invalid);
}

static PyMethodDef methods[] = {
    {"nanoseconds", nanoseconds, METH_O, "See column_loops.nanoseconds."},
    {"join_span_columns", join_span_columns, METH_VARARGS, "See column_loops.join_span_columns."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "runspan.otlp._column_loops", .m_methods = methods};

PyMODINIT_FUNC PyInit__column_loops(void) { return PyModuleDef_Init(&definition); }

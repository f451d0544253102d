"""Units and words after a value.

A unit is dropped when only one side has one, or when both have the same; two different known units are a mismatch.
"""

from __future__ import annotations

import re

_SPELLINGS = {
    "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "g": "g gm gram grams",
    "mg": "mg milligram milligrams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ton": "ton tons tonne tonnes",
    "L": "l liter liters litre litres",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "gal": "gal gallon gallons",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "mph": "mph",
    "km/h": "km/h kph kmh",
    "m/s": "m/s",
    "cent": "cent cents",
    "dollar": "dollar dollars usd",
    "euro": "euro euros eur",
    "yuan": "yuan rmb",
    "franc": "chf franc francs",
    "rupee": "rs inr rupee rupees",
    "kWh": "kwh",
    "deg": "deg degree degrees",
    "rad": "rad radian radians",
    "%": "% percent pct percentage percents",
    "am": "am",
    "pm": "pm",
    "unit": "unit units",
    "sq": "sq square cubic cu squared cubed",
}
_FOREIGN_SPELLINGS = {
    "cm": "厘米 公分 センチ センチメートル 센티미터 см сантиметров",
    "mm": "毫米 ミリ ミリメートル мм",
    "m": "米 公尺 メートル 미터 м метр метра метров mètre mètres",
    "km": "千米 公里 キロメートル 킬로미터 км",
    "in": "英寸",
    "ft": "英尺",
    "mi": "英里",
    "g": "克 公克 グラム 그램 г грамм граммов",
    "kg": "千克 公斤 キログラム 킬로그램 кг",
    "mg": "毫克",
    "ton": "吨 噸 トン 톤",
    "L": "升 公升 リットル 리터 л литр литра литров",
    "mL": "毫升 ミリリットル мл",
    "s": "秒 秒钟 초 сек секунд",
    "min": "分钟 分鐘 분 мин минут минуты",
    "h": "小时 小時 時間 시간 час часа часов",
    "day": "天 日 일 день дня дней día días",
    "week": "周 星期 週間 주 недель",
    "month": "月 个月 個月 ヶ月 か月 개월 месяцев",
    "year": "年 岁 歲 歳 세 살 лет год года año años",
    "cent": "美分",
    "dollar": "美元 美金 ドル 달러 доллар доллара долларов dólar dólares",
    "euro": "欧元 歐元 ユーロ 유로 евро",
    "yuan": "元 圆 块 人民币 块钱",
    "deg": "度 도 градус градусов градуса °",
}
"""Chinese, Japanese, Korean, Russian and accented words. Words without an entry are units of an unknown kind."""
_CANONICAL = {
    word: unit for table in (_SPELLINGS, _FOREIGN_SPELLINGS) for unit, words in table.items() for word in words.split()
}
_GENERIC = frozenset({"unit", "sq"})
UNIT_LETTERS = frozenset("mgsh")
"""Common one-letter units: after a number such a letter may be a unit or a variable."""
_MULTIPLIERS = {
    "hundred": 2, "thousand": 3, "million": 6, "millions": 6, "billion": 9, "billions": 9, "trillion": 12, "mille": 3,
    "tausend": 3, "millionen": 6, "millones": 6, "millón": 6, "milliarde": 9, "milliarden": 9, "тысяча": 3, "тысячи": 3,
    "тысяч": 3, "тыс": 3, "миллион": 6, "миллиона": 6, "миллионов": 6, "млн": 6, "миллиард": 9, "миллиарда": 9, "миллиардов": 9,
}  # fmt: skip
_FOREIGN_POWERS = {
    "十": 1,
    "百": 2,
    "千": 3,
    "万": 4,
    "萬": 4,
    "亿": 8,
    "億": 8,
    "십": 1,
    "백": 2,
    "천": 3,
    "만": 4,
    "억": 8,
}
_FOREIGN_POWER = re.compile("(?:百(?!分)|千(?![克米瓦卡焦帕升赫])|[十万萬亿億십백천만억])+")
_DENIALS = frozenset(
    "not no or nor wrong except but incorrect never isn't without and plus minus times dozen dozens half".split()  # noqa: SIM905
)
_FOREIGN_DENIAL = re.compile(
    "[不非没沒无無错錯或和与與及至到半余餘几幾多約约]|[以大小超][上下内於于过過]|左右|または|もしくは|ではない|と(?![ァ-ヶぁ-ん])"
    "|또는|아니|이상|이하|반$|(?<![а-яё])(?:или|не|и|ни|от|до|с)(?![а-яё])"
)


def canonical_unit(words: str) -> str | None:
    """The known unit named by ``words``, including ``%``; None for other words and for 'square units' alone."""
    lowered = re.sub(r"[\^{}]", " ", words.casefold().replace(".", ""))
    if not lowered.isascii():
        # A square or cubic unit is told from a length by nothing, as in English.
        lowered = re.sub("(?<!\\S)[平立]方(?=\\S)", "", _FOREIGN_POWER.sub("", lowered))
    units = (_CANONICAL.get(word, "unit") for word in lowered.split())
    return next((unit for unit in units if unit not in _GENERIC), None)


def power_of_ten(words: str) -> int:
    """Power of ten of the number words in a unit: 6 for ``million dollars``, 0 without such words."""
    power = 0
    for word in words.casefold().split():
        power += _MULTIPLIERS.get(word.strip(".,"), 0)
        if not word.isascii() and (leading := _FOREIGN_POWER.match(word)):
            power += sum(_FOREIGN_POWERS[char] for char in leading.group())
    return power


def acceptable(words: str) -> bool:
    """Whether words after a value may be read as its unit: they contain no further number and nothing that revokes the
    value."""
    if words.strip().casefold() == "times":
        return True  # how often; before a factor it is no unit
    bare = re.sub(r"\^\s*\{?\s*-?[1-9]\s*\}?", "", words)
    if not bare.isascii() and _FOREIGN_DENIAL.search(bare):
        return False
    return not re.search(r"[0-9=<>]", bare) and not _DENIALS & set(re.findall(r"[a-z']+", bare.casefold()))


def is_unit_word(word: str) -> bool:
    """Whether a plain word after a value (not in ``\\text``) is a unit: a known unit of two letters or more."""
    return len(word) > 1 and word.casefold() in _CANONICAL

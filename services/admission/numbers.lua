-- Exact integers in a language whose numbers are doubles: nothing here passes 2^53, so that a shared limit decides to
-- the nanosecond as policies/admission/limits does. Knows no key and no limit.

local SECOND = 1000000000

-- Whole quotient and remainder of integers. fmod is exact, and so is the division of a multiple.
local function divmod(a, b)
  local rest = math.fmod(a, b)
  return (a - rest) / b, rest
end

-- Whole quotient and remainder of a * b / m, for a < m <= 2^53 / 63 and b < 2^53: five bits of b at a time.
local function muldivmod(a, b, m)
  local digits = {}
  while b > 0 do
    local digit
    b, digit = divmod(b, 32)
    digits[#digits + 1] = digit
  end
  local whole, rest = 0, 0
  for place = #digits, 1, -1 do
    local carried
    carried, rest = divmod(rest * 32 + a * digits[place], m)
    whole = whole * 32 + carried
  end
  return whole, rest
end

-- Is the time (s, ns) before the other?
local function before(s, ns, other_s, other_ns)
  return s < other_s or (s == other_s and ns < other_ns)
end

-- A time as text and back: every number of nanoseconds since 1970 has more digits than a double.
local function integer(number)
  return string.format('%.0f', number)
end

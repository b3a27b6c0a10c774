-- What is taken of every limit, as policies/admission/limits/algorithms.py measures it.
--
-- A rate (GCRA, token bucket) is what is owed: whole units, and a rest in parts of which a unit has as many as the period
-- has nanoseconds, so that a nanosecond brings back `limit` of them. A log is a hash: entries by number, the number of a request's latest, their
-- sum. A gauge is a hash with a field for each replica; what a lost replica held counts no more once its lease is over.
--
-- Every limit is read once, changed in memory and written once at the end, so that a script that fails writes nothing.

local RATE, LOG, GAUGE = 1, 2, 3
local FORGOTTEN_MS = 60000
local GAUGE_KEPT_MS = 86400000

local meters = {}

local rate = {}

function rate.load(key)
  local w, f, s, ns, limit = string.match(redis.call('GET', key) or '', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {owed = tonumber(w or 0), rest = tonumber(f or 0), s = tonumber(s or 0), ns = tonumber(ns or 0),
    limit = limit and tonumber(limit)}
end

-- What the time since the last change has brought back.
function rate.refill(meter, period_s, now)
  if meter.limit and (meter.owed > 0 or meter.rest > 0) then
    local periods, seconds = divmod(now.s - meter.s, period_s)
    local ns = seconds * SECOND + now.ns - meter.ns
    if ns < 0 then
      periods, ns = periods - 1, ns + period_s * SECOND
    elseif ns >= period_s * SECOND then
      periods, ns = periods + 1, ns - period_s * SECOND
    end
    local back, rest = muldivmod(ns, meter.limit, period_s * SECOND)
    meter.owed, meter.rest = meter.owed - back - periods * meter.limit, meter.rest - rest
    if meter.rest < 0 then
      meter.owed, meter.rest = meter.owed - 1, meter.rest + period_s * SECOND
    end
    if meter.owed < 0 then
      meter.owed, meter.rest = 0, 0
    end
  end
  meter.s, meter.ns = now.s, now.ns
end

function rate.look(meter, item, now)
  rate.refill(meter, item.period_s, now)
  -- From now on it comes back at the new rate; what was owed stays owed.
  meter.limit = item.limit
  return {meter.owed, meter.rest}
end

function rate.fits(meter, item)
  local after = meter.owed + item.amount
  return after < item.burst or (after == item.burst and meter.rest == 0)
end

function rate.take(meter, item)
  meter.owed = meter.owed + item.amount
end

function rate.correct(meter, item, change, now)
  rate.refill(meter, item.period_s, now)
  meter.limit = meter.limit or item.limit
  meter.owed = meter.owed + change
  if meter.owed < 0 then
    meter.owed, meter.rest = 0, 0
  end
end

function rate.save(key, meter, item)
  if meter.owed == 0 and meter.rest == 0 then
    redis.call('DEL', key)
    return
  end
  local text = string.format('%.0f %.0f %.0f %.0f %.0f', meter.owed, meter.rest, meter.s, meter.ns, meter.limit)
  local back_ms = math.ceil((meter.owed + 1) * item.period_s * 1000 / meter.limit)
  redis.call('SET', key, text, 'PX', integer(back_ms + FORGOTTEN_MS))
end

local log = {}

function log.load(key)
  local meter = {entries = {}, requests = {}, written = {}, gone = {}, key = key}
  local sizes = redis.call('HMGET', key, 'first', 'after', 'sum')
  meter.first, meter.after, meter.sum = tonumber(sizes[1] or 0), tonumber(sizes[2] or 0), tonumber(sizes[3] or 0)
  return meter
end

function log.entry(meter, number)
  local entry = meter.entries[number]
  if not entry then
    local s, ns, amount, request = string.match(redis.call('HGET', meter.key, 'e' .. integer(number)),
      '^(%d+) (%d+) (%d+) (.*)$')
    entry = {s = tonumber(s), ns = tonumber(ns), amount = tonumber(amount), request = request}
    meter.entries[number] = entry
  end
  return entry
end

function log.latest(meter, request)
  local number = meter.requests[request] or tonumber(redis.call('HGET', meter.key, 'r' .. request) or nil)
  return number and number >= meter.first and number
end

function log.expire(meter, period_s, now)
  while meter.first < meter.after do
    local entry = log.entry(meter, meter.first)
    -- Exactly a period ago still counts.
    if not before(entry.s + period_s, entry.ns, now.s, now.ns) then
      return
    end
    meter.sum = meter.sum - entry.amount
    meter.gone[#meter.gone + 1] = {number = meter.first, request = entry.request}
    meter.first = meter.first + 1
  end
end

-- The oldest entries, as far as they must leave for the item to fit, and all others as one, at the time of the newest.
function log.look(meter, item, now)
  log.expire(meter, item.period_s, now)
  local shown, rest, over, number = {}, meter.sum, meter.sum + item.amount - item.limit, meter.first
  while over > 0 and number < meter.after do
    local entry = log.entry(meter, number)
    over, rest, number = over - entry.amount, rest - entry.amount, number + 1
    shown[#shown + 1] = {entry.s, entry.ns, entry.amount}
  end
  local newest = meter.after - 1
  while rest > 0 do
    local entry = log.entry(meter, newest)
    if entry.amount > 0 then
      shown[#shown + 1] = {entry.s, entry.ns, rest}
      break
    end
    newest = newest - 1
  end
  return shown
end

function log.fits(meter, item)
  return meter.sum + item.amount <= item.limit
end

function log.add(meter, request, amount, now)
  meter.entries[meter.after] = {s = now.s, ns = now.ns, amount = amount, request = request}
  meter.written[meter.after] = true
  meter.requests[request] = meter.after
  meter.after, meter.sum = meter.after + 1, meter.sum + amount
end

function log.take(meter, item, request, now)
  log.add(meter, request, item.amount, now)
end

-- What has left the span is not given back a second time.
function log.correct(meter, item, change, now, request)
  log.expire(meter, item.period_s, now)
  local number = log.latest(meter, request)
  if number then
    local entry = log.entry(meter, number)
    change = math.max(change, -entry.amount)
    entry.amount, meter.sum = entry.amount + change, meter.sum + change
    meter.written[number] = true
  elseif change > 0 then
    log.add(meter, request, change, now)
  end
end

function log.save(key, meter, item)
  for _, gone in ipairs(meter.gone) do
    redis.call('HDEL', key, 'e' .. integer(gone.number))
    if log.latest(meter, gone.request) == false then
      redis.call('HDEL', key, 'r' .. gone.request)
    end
  end
  if meter.first == meter.after then
    redis.call('DEL', key)
    return
  end
  for number in pairs(meter.written) do
    if number >= meter.first then
      local entry = meter.entries[number]
      local text = string.format('%.0f %.0f %.0f %s', entry.s, entry.ns, entry.amount, entry.request)
      redis.call('HSET', key, 'e' .. integer(number), text, 'r' .. entry.request, integer(number))
    end
  end
  redis.call('HSET', key, 'first', integer(meter.first), 'after', integer(meter.after), 'sum', integer(meter.sum))
  redis.call('PEXPIRE', key, integer(item.period_s * 1000 + FORGOTTEN_MS))
end

local gauge = {}

function gauge.load(key, replicas)
  local meter = {mine = 0, others = 0, lost = {}}
  local fields = redis.call('HGETALL', key)
  for index = 1, #fields, 2 do
    local amount = tonumber(fields[index + 1])
    if fields[index] == replicas.me then
      meter.mine = amount
    elseif replicas.living[fields[index]] then
      meter.others = meter.others + amount
    else
      meter.lost[#meter.lost + 1] = fields[index]
    end
  end
  return meter
end

function gauge.look(meter)
  return {meter.mine, meter.others}
end

function gauge.fits(meter, item)
  return meter.mine + meter.others + item.amount <= item.limit
end

function gauge.take(meter, item)
  meter.mine = meter.mine + item.amount
end

function gauge.correct(meter, _, change)
  meter.mine = math.max(0, meter.mine + change)
end

function gauge.save(key, meter, _, replicas)
  for _, replica in ipairs(meter.lost) do
    redis.call('HDEL', key, replica)
  end
  if meter.mine > 0 then
    redis.call('HSET', key, replicas.me, integer(meter.mine))
    redis.call('PEXPIRE', key, GAUGE_KEPT_MS)
  else
    redis.call('HDEL', key, replicas.me)
  end
end

local RULES = {[RATE] = rate, [LOG] = log, [GAUGE] = gauge}

-- Items come as {key, rule, amount, limit, burst, seconds of the period}.
local function read_items(rows, replicas)
  local items = {}
  for index, row in ipairs(rows) do
    local item = {key = KEYS[row[1]], rule = RULES[row[2]], amount = row[3], limit = row[4], burst = row[5],
      period_s = row[6], change = row[7]}
    local meter = meters[item.key]
    if not meter then
      meter = {value = item.rule.load(item.key, replicas), item = item}
      meters[item.key] = meter
    end
    item.meter = meter.value
    items[index] = item
  end
  return items
end

-- Take every item or nothing. Answers whether, and what was taken of each before.
local function reserve(request, rows, now, replicas)
  local items, states, taken = read_items(rows, replicas), {}, true
  for index, item in ipairs(items) do
    states[index] = item.rule.look(item.meter, item, now)
    taken = taken and item.rule.fits(item.meter, item)
  end
  if taken then
    for _, item in ipairs(items) do
      item.rule.take(item.meter, item, request, now)
    end
  end
  return {taken, states}
end

-- Each item was taken as `amount` and is really `change` more. Never refuses.
local function adjust(request, rows, now, replicas)
  for _, item in ipairs(read_items(rows, replicas)) do
    item.rule.correct(item.meter, item, item.change, now, request)
  end
  return true
end

-- This replica holds exactly this much of these gauges, whatever the store has thought: {key, amount} each.
local function hold(rows, replicas)
  for _, row in ipairs(rows) do
    local key = KEYS[row[1]]
    meters[key] = meters[key] or {value = gauge.load(key, replicas), item = {rule = gauge}}
    meters[key].value.mine = row[2]
  end
  return true
end

local function save_limits(replicas)
  for key, meter in pairs(meters) do
    meter.item.rule.save(key, meter.value, meter.item, replicas)
  end
end

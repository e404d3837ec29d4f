-- Takes units of a shared count. One key, so that a cluster can keep it anywhere; one round trip.
-- ARGV: kind, limit (calendar: units; rolling: tolerance in us), step (calendar: ms to keep; rolling: us per unit),
--       need, want, told (used without a lease; below zero: given back), seen (state as last seen), nodes, resync
-- Answers: granted, free, state, us until what is needed will be there
local kind, limit, step = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local need, want, told = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local seen, nodes = tonumber(ARGV[7]), tonumber(ARGV[8])
local state, now = tonumber(redis.call('GET', KEYS[1]) or seen), 0
-- This Redis was away for that node, and may have forgotten.
if ARGV[9] == '1' then state = math.max(state, seen) end
local function free_of(s)
  if kind == 'c' then return limit - s end
  return math.floor((limit - (s - now)) / step + 0.000001)
end
if kind == 'c' then
  state = math.max(0, state + told)
else
  local t = redis.call('TIME')
  -- Counted from 2025, or a double would have no room for fractions.
  now = (tonumber(t[1]) - 1735689600) * 1000000 + tonumber(t[2])
  state = math.max(now, math.max(state, now) + told * step)
end
local free = math.max(0, free_of(state))
-- Near the limit leases shrink, so that the last units are not stuck with one node.
local granted = math.max(need, math.min(want, math.floor(free / (2 * nodes))))
local wait = 0
if granted > free then
  granted = 0
  if kind == 'r' then wait = math.max(0, (state - now) + need * step - limit) end
end
if kind == 'c' then
  state = state + granted
  redis.call('SET', KEYS[1], string.format('%.0f', state), 'PX', step)
else
  state = state + granted * step
  redis.call('SET', KEYS[1], string.format('%.3f', state), 'PX', math.ceil((state - now) / 1000) + 1000)
end
return { granted, free - granted, string.format('%.3f', state), math.ceil(wait) }

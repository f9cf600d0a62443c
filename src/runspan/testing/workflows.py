"""The twenty invented workflows of the generator and the kinds of their steps, as text tables; no I/O.

Their ids, names and types are fixed, as on a real platform: dashboards, indexes and caches depend on few distinct
values. Payloads are ``%``-templates for the values of one run (see ``generate``), written as JSON without spaces, so
that a generated document is canonical.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

# Workflow id, triggerType, weight; `in` and `out` are the run's payloads; then a line per step:
# id | name | kind | the steps that it follows (default: the one above), and when it is executed.
_WORKFLOWS = """
wf_overdue_invoices schedule 9
in  {"cron":"0 6 * * 1-5","timezone":"America/New_York","scheduledFor":"%(fired)s"}
out {"remindersSent":%(rounds)d,"currency":"%(currency)s"}
every-weekday  | Every weekday at 6     | schedule
fetch-invoices | Fetch Overdue Invoices | quickbooks.query
each-invoice   | For each invoice       | loop
send-reminder  | Send reminder          | gmail            | each
post-summary   | Post summary           | slack            | after:each-invoice

wf_dunning_card event 9
in  {"event":"invoice.payment_failed","invoice":"in_%(hex)s","customer":"cus_%(hex)s","attemptCount":1}
out {"paid":true}
payment-failed | Payment failed    | event
charge-card    | Charge card again | stripe.charge
paid           | Paid?             | condition
tell-customer  | Tell the customer | email            | if:yes
escalate       | Escalate          | slack            | after:paid if:no

wf_payment_received webhook 14
in  {"id":"evt_%(hex)s","type":"charge.succeeded","livemode":true,"data":{"object":{"id":"ch_%(hex)s",
    "amount":%(cents)d,"currency":"%(currency)s","receipt_email":"%(email)s"}}}
out {"synced":["hubspot","xero"]}
stripe-hook  | Stripe webhook | webhook
update-deal  | Update deal    | hubspot.deal | after:stripe-hook
book-payment | Book payment   | xero.payment | after:stripe-hook
ring-bell    | Ring the bell  | slack        | after:stripe-hook
receipt      | Send receipt   | email        | after:update-deal,book-payment

wf_payout_journal event 6
in  {"event":"payout.paid","payout":"po_%(hex)s","arrivalDate":"%(date)s"}
out {"journalEntry":"JE-%(number)d","balanced":true}
payout-paid       | Payout paid               | event
list-transactions | List balance transactions | stripe.transactions
to-journal        | Turn into journal lines   | transform
post-journal      | Post journal entry        | netsuite.journal

wf_customer_onboarding api 5
in  {"customer":{"name":"%(customer)s","domain":"%(domain)s","plan":"%(plan)s","seats":%(people)d}}
out {"customerId":"cus_%(hex)s","workspaceUrl":"https://%(domain)s/app"}
create-account    | Create account      | salesforce.account
provision-billing | Provision billing   | sub-workflow | runs:wf_provision_billing
welcome-mail      | Send welcome mail   | gmail        | after:provision-billing
invite-channel    | Open shared channel | slack        | after:provision-billing
first-meeting     | Invite to kick-off  | outlook      | after:welcome-mail

wf_provision_billing api 1
in  {"name":"%(customer)s","plan":"%(plan)s","seats":%(people)d}
out {"customerId":"cus_%(hex)s"}
create-customer | Create Stripe customer | stripe.customer
first-charge    | First charge           | stripe.charge
mirror-customer | Mirror customer        | quickbooks.invoice | after:create-customer
confirm         | Confirm by mail        | email              | after:first-charge,mirror-customer

wf_support_triage event 13
in  {"event":"gmail.message.received","from":"%(email)s","subject":"Question about %(invoice)s",
    "snippet":"Hi, I see two payments of %(amount)s %(currency)s on my statement and expected one."}
out {"category":"billing","handledBy":"agent"}
mail-received | Mail received        | event
triage        | Triage the ticket    | agent.triage
is-urgent     | Urgent?              | condition
page-team     | Page the team        | slack          | after:is-urgent if:yes
reply         | Reply with the draft | gmail          | after:is-urgent
queue-ticket  | Queue the ticket     | hubspot.upsert | after:is-urgent if:no

wf_bill_capture webhook 9
in  {"attachment":{"filename":"%(invoice)s.pdf","sha256":"%(hex)s%(hex)s","bytes":%(cents)d}}
out {"billId":"BILL-%(number)d"}
file-arrived | File arrived         | webhook
extract      | Extract fields       | agent.extract
match-po     | Match purchase order | netsuite.match
create-bill  | Create bill          | xero.bill
notify       | Notify bookkeeping   | slack

wf_lead_scoring schedule 5
in  {"cron":"30 6 * * *","scheduledFor":"%(fired)s","list":"new-inbound"}
out {"scored":%(rounds)d}
morning      | Every morning     | schedule
new-leads    | New leads         | salesforce.query
each-lead    | For each lead     | loop
score        | Score the lead    | agent.score    | each
write-scores | Write scores back | hubspot.upsert | after:each-lead

wf_contract_approval event 4
in  {"event":"salesforce.opportunity.stage_changed","opportunityId":"0065g0%(hex)s","stage":"Contract Sent"}
out {"envelopeId":"%(hex)s"}
stage-changed   | Stage changed     | event
review-contract | Review contract   | agent.review
legal-approval  | Approval by legal | approval
send-envelope   | Send envelope     | docusign
tell-owner      | Tell the owner    | slack

wf_vendor_payment manual 4
in  {"vendor":"%(customer)s","amount":%(amount)s,"currency":"%(currency)s","invoice":"%(invoice)s"}
out {"paid":true}
match-po     | Match purchase order   | netsuite.match
above-limit  | Above 5000?            | condition
cfo-approval | Approval by CFO        | approval       | if:yes
pay-vendor   | Pay vendor             | action.http    | after:above-limit,cfo-approval
book-payment | Book payment           | xero.payment   | after:pay-vendor
remittance   | Send remittance advice | email          | after:pay-vendor

wf_crm_sync schedule 10
in  {"since":"%(fired)s","pageSize":200,"cursor":"%(hex)s"}
out {"upserted":%(people)d}
quarter-hour  | Every 15 minutes | schedule
fetch-page    | Fetch contacts   | salesforce.query
each-contact  | For each contact | loop
upsert        | Upsert contact   | hubspot.upsert   | each
save-cursor   | Save cursor      | action.http      | after:each-contact

wf_month_end_close schedule 2
in  {"period":"%(date)s","entities":["US","UK","NZ"]}
out {"closed":["US","UK","NZ"]}
first-of-month | First of the month      | schedule
close-us       | Close US in NetSuite    | netsuite.journal | after:first-of-month
close-uk       | Close UK in Xero        | xero.payment     | after:first-of-month
close-nz       | Close NZ in QuickBooks  | quickbooks.query | after:first-of-month
consolidate    | Consolidate             | transform        | after:close-us,close-uk,close-nz
board-pack     | Mail the board pack     | outlook

wf_invoice_from_deal webhook 9
in  {"dealId":"D-%(number)d","company":"%(customer)s","amount":%(amount)s,"closedAt":"%(fired)s"}
out {"invoice":"%(invoice)s"}
deal-closed    | Deal closed         | webhook
build-lines    | Build invoice lines | transform
create-invoice | Create invoice      | quickbooks.invoice
email-invoice  | Email invoice       | gmail | after:create-invoice
notify-finance | Notify finance      | slack | after:create-invoice

wf_lead_enrichment webhook 8
in  {"email":"%(email)s","utm":{"source":"newsletter","campaign":"fall-26"},"page":"/pricing"}
out {"contact":"%(number)d"}
form-hook      | Form submitted  | webhook
company-data   | Look up company | action.lookup  | after:form-hook
create-contact | Create contact  | hubspot.upsert | after:form-hook
score          | Score the lead  | agent.score    | after:company-data
assign-owner   | Assign owner    | hubspot.deal   | after:create-contact,score

wf_refund api 5
in  {"invoice":"%(invoice)s","amount":%(amount)s,"currency":"%(currency)s","reason":"duplicate",
    "requestedBy":"%(email)s"}
out {"refunded":true}
load-charge  | Load charge         | stripe.transactions
above-limit  | Above 5000?         | condition
sign-off     | Sign-off by manager | approval         | if:yes
refund       | Refund              | stripe.charge    | after:above-limit,sign-off
post-journal | Post journal entry  | netsuite.journal
tell         | Tell the customer   | email            | after:refund

wf_usage_metering schedule 8
in  {"window":"1h","until":"%(fired)s","meters":["api_calls","storage_gb","seats"]}
out {"records":%(number)d}
hourly       | Every hour       | schedule
collect      | Collect usage    | action.lookup
aggregate    | Aggregate        | transform
report-usage | Report to Stripe | stripe.customer

wf_trial_expiry schedule 5
in  {"account":"ACC-%(number)d","trialEndsAt":"%(fired)s","plan":"%(plan)s"}
out {"action":"converted"}
daily        | Every day          | schedule
load-account | Load account       | action.lookup
has-card     | Card on file?      | condition
convert      | Convert to paid    | stripe.charge  | after:has-card if:yes
thank-you    | Thank you          | gmail          | if:yes
grace        | Wait a moment      | wait           | after:has-card if:no
downgrade    | Downgrade          | action.http    | if:no

wf_nda_signature webhook 4
in  {"form":"partner-signup","company":"%(customer)s","email":"%(email)s","country":"%(country)s"}
out {"partner":"0015g0%(hex)s"}
form-hook      | Form submitted | webhook
send-nda       | Send NDA       | docusign
until-signed   | Until signed   | wait
create-partner | Create partner | salesforce.account

wf_regional_statements manual 3
in  {"region":"%(country)s","period":"%(date)s","requestedBy":"%(email)s"}
out {"statements":%(rounds)d}
open-invoices  | Open invoices     | quickbooks.query
each-customer  | For each customer | loop
send-statement | Send statement    | outlook | each
archive        | Archive           | action.http | after:each-customer
report         | Report            | slack
"""


# Name, typical milliseconds, for agents the model; `in` and `out` are the step's payloads.
_STEP_KINDS = """
webhook 3
out {"verified":true,"headers":{"content-type":"application/json","x-request-id":"%(hex)s",
    "user-agent":"Hooks/1.0 (+https://hooks.example/about)","x-signature":"t=%(number)d,v1=%(hex)s"}}

schedule 2
out {"firedAt":"%(fired)s","calendar":"business-days","missed":0}

event 2
out {"eventId":"evt_%(hex)s","received":true,"occurredAt":"%(fired)s","source":"integrations"}

action.http 620
in  {"method":"POST","url":"https://api.%(domain)s/v2/records","body":{"reference":"%(invoice)s","amount":%(amount)s}}
out {"status":201,"headers":{"location":"/v2/records/rec_%(hex)s"},"body":{"id":"rec_%(hex)s","state":"accepted"}}

action.lookup 480
in  {"method":"GET","url":"https://data.example/companies","query":{"domain":"%(domain)s"}}
out {"status":200,"body":{"name":"%(customer)s","employees":%(people)d,"country":"%(country)s","plan":"%(plan)s",
    "industry":"professional services","technologies":["stripe","hubspot","slack"],"revenueUsd":%(cents)d}}

stripe.charge 1450
in  {"operation":"invoices.pay","invoice":"in_%(hex)s","off_session":true}
out {"status":"paid","charge":"ch_%(hex)s","amount":%(cents)d,"currency":"%(currency)s","customer":"cus_%(hex)s",
    "payment_method_details":{"type":"card","card":{"brand":"visa","last4":"4242","country":"%(country)s"}}}

stripe.customer 900
in  {"operation":"customers.create","name":"%(customer)s","email":"%(email)s","metadata":{"plan":"%(plan)s"}}
out {"id":"cus_%(hex)s","object":"customer","livemode":true,"currency":"%(currency)s","delinquent":false}

stripe.transactions 1300
in  {"operation":"balanceTransactions.list","payout":"po_%(hex)s","limit":100}
out {"rows":[["txn_%(hex)s","charge",%(cents)d],["txn_%(hex)s","fee",-320]],"count":%(people)d,"hasMore":false}

salesforce.account 1250
in  {"object":"Account","fields":{"Name":"%(customer)s","Website":"%(domain)s","BillingCountry":"%(country)s"}}
out {"id":"0015g0%(hex)s","success":true,"errors":[]}

salesforce.query 1700
in  {"soql":"SELECT Id, Email, LastModifiedDate FROM Contact WHERE LastModifiedDate > %(fired)s LIMIT 200"}
out {"totalSize":%(people)d,"done":true,"nextRecordsUrl":null,"records":[{"Id":"0035g0%(hex)s","Email":"%(email)s",
    "LastModifiedDate":"%(fired)s"}]}

hubspot.upsert 1100
in  {"object":"contacts","properties":{"email":"%(email)s","company":"%(customer)s","lifecyclestage":"customer",
    "country":"%(country)s","hs_lead_status":"OPEN","plan":"%(plan)s"},"idProperty":"email","round":%(round)d}
out {"id":"%(number)d","new":false,"createdAt":"2025-03-03T09:12:44.120Z","updatedAt":"%(fired)s","archived":false}

hubspot.deal 850
in  {"dealId":"%(number)d","properties":{"dealstage":"closedwon","amount":"%(amount)s","payment_status":"paid"}}
out {"id":"%(number)d","properties":{"dealstage":"closedwon","amount":"%(amount)s"},"updatedAt":"%(fired)s"}

quickbooks.query 1900
in  {"operation":"query","query":"select * from Invoice where Balance > '0' and DueDate < '%(date)s'","maxResults":100}
out {"invoices":[{"Id":"%(number)d","DocNumber":"%(invoice)s","CustomerRef":"%(customer)s","Balance":%(amount)s,
    "DueDate":"%(date)s","CurrencyRef":"%(currency)s"}],"maxResults":100,"count":%(rounds)d}

quickbooks.invoice 1600
in  {"operation":"createInvoice","customer":"%(customer)s","lines":[{"sku":"%(sku)s","quantity":1,"amount":%(amount)s}]}
out {"Id":"%(number)d","DocNumber":"%(invoice)s","SyncToken":"0","TotalAmt":%(amount)s,"Balance":%(amount)s,
    "EmailStatus":"NeedToSend","CustomerRef":{"name":"%(customer)s","value":"%(number)d"}}

netsuite.journal 2600
in  {"recordType":"journalentry","subsidiary":2,"memo":"%(customer)s %(invoice)s","trandate":"%(date)s",
    "lines":[{"account":"1200","debit":%(amount)s},{"account":"4000","credit":%(amount)s}]}
out {"id":"%(number)d","tranId":"JE-%(number)d"}

netsuite.match 1800
in  {"recordType":"purchaseorder","tranId":"PO-%(number)d","vendor":"%(customer)s"}
out {"matched":true,"variance":0,"currency":"%(currency)s",
    "lines":[{"item":"%(sku)s","ordered":%(rounds)d,"billed":%(rounds)d}]}

xero.payment 1350
in  {"operation":"payments.create","invoiceNumber":"%(invoice)s","amount":%(amount)s,"currency":"%(currency)s"}
out {"PaymentID":"%(hex)s","Status":"AUTHORISED","Date":"%(date)s","CurrencyRate":1}

xero.bill 1500
in  {"type":"ACCPAY","contact":"%(customer)s","reference":"%(invoice)s","total":%(amount)s}
out {"InvoiceID":"BILL-%(number)d","Status":"DRAFT"}

slack 410
in  {"channel":"#billing-ops","text":"%(customer)s: %(invoice)s, %(amount)s %(currency)s","blocks":[{"type":"section",
    "text":{"type":"mrkdwn","text":"*%(customer)s*: invoice `%(invoice)s` over %(amount)s %(currency)s was handled."}}]}
out {"ok":true,"channel":"C07QK2M4R","ts":"%(number)d.000200","message":{"bot_id":"B05WRKFLW","type":"message"}}

gmail 1200
in  {"to":"%(email)s","subject":"Invoice %(invoice)s","template":"reminder-14d","round":%(round)d,
    "body":"Dear %(customer)s,\\n\\nour records show %(amount)s %(currency)s open on %(invoice)s. Kind regards"}
out {"messageId":"%(hex)s","threadId":"%(hex)s","labelIds":["SENT"],"sizeEstimate":%(number)d}

outlook 1400
in  {"to":["%(email)s"],"subject":"%(customer)s: statement of %(date)s","importance":"normal"}
out {"id":"AAMkAGI2%(hex)s","conversationId":"AAQkAGI2%(hex)s","sentAt":"%(fired)s"}

email 700
in  {"to":"%(email)s","template":"payment-received","locale":"%(country)s","variables":{"name":"%(customer)s",
    "invoice":"%(invoice)s","amount":"%(amount)s %(currency)s"}}
out {"accepted":["%(email)s"],"rejected":[],"messageId":"<%(hex)s@mail.example>","response":"250 2.0.0 OK"}

docusign 2900
in  {"template":"msa-2026","signers":[{"email":"%(email)s","routingOrder":1}],"subject":"%(customer)s"}
out {"envelopeId":"%(hex)s","status":"sent","statusDateTime":"%(fired)s","uri":"/envelopes/%(hex)s"}

agent.triage 5200 claude-sonnet-4-6
in  {"model":"claude-sonnet-4-6","maxTokens":1024,"tools":["stripe.lookup"],
    "prompt":"You triage support tickets. Classify the ticket, set a priority and draft a short, friendly reply."}
out {"result":{"category":"billing","priority":"high","confidence":0.94,
    "draft":"Thank you for writing. I looked at %(invoice)s: the second payment is an authorisation and drops off."},
    "usage":USAGE}

agent.extract 4300 gpt-4o-mini
in  {"model":"gpt-4o-mini","responseFormat":"json_schema","schema":"bill-v3","file":"%(invoice)s.pdf"}
out {"result":{"vendor":"%(customer)s","number":"%(invoice)s","total":%(amount)s,"currency":"%(currency)s",
    "lines":[{"text":"Services of %(date)s","net":%(amount)s,"taxRate":0.19}]},"usage":USAGE}

agent.score 2700 gpt-4.1-mini
in  {"model":"gpt-4.1-mini","prompt":"Score the lead from 0 to 100.","lead":"%(email)s"}
out {"result":{"score":%(people)d,"reason":"Company of a fitting size in %(country)s",
    "signals":["pricing page","newsletter"]},"usage":USAGE}

agent.review 9800 claude-opus-4-6
in  {"model":"claude-opus-4-6","temperature":0,"document":"doc_%(hex)s"}
out {"result":{"risk":"medium","clauses":[{"number":"11.2","issue":"uncapped indemnity"}]},"usage":USAGE}

condition 1
in  {"expression":"{{ steps.previous.output.matches }}","truthy":%(condition)s,"branches":["yes","no"]}
out {"result":%(condition)s}

loop 4
in  {"over":"{{ steps.previous.output.items }}","concurrency":1,"continueOnError":false}
out {"iterations":%(rounds)d}

sub-workflow 40
in  {"workflowId":"%(child)s","input":{"customer":"%(customer)s","plan":"%(plan)s"}}
out {"runId":"%(childRun)s","status":"completed"}

transform 9
in  {"mapping":"invoice-lines-v3","fields":["amount","currency","reference","customer","lines"],"strict":true}
out {"reference":"%(invoice)s","amount":%(amount)s,"currency":"%(currency)s","customer":"%(customer)s","lines":[
    {"sku":"%(sku)s","quantity":%(rounds)d,"unitPrice":%(amount)s}]}

wait 30000
in  {"seconds":30}
out {"resumed":true}

approval 1500000
in  {"approvers":["cfo@ledgerline.example"],"timeoutHours":48,"message":"%(customer)s, %(amount)s %(currency)s"}
out {"approved":true,"approvedBy":"cfo@ledgerline.example","approvedAt":"%(approved)s","comment":"Fine, go ahead."}
"""

_USAGE = (
    '{"promptTokens":%(prompt)d,"completionTokens":%(completion)d,"totalTokens":%(tokens)d,'
    '"model":"%(model)s","estimatedCostUsd":%(cost)s}'
)


@dataclass(frozen=True, slots=True)
class StepKind:
    """A kind of step."""

    type: str
    """The step type in run documents: the part of the kind's name before the dot."""
    typical_ms: int
    model: str | None
    input: str | None
    output: str


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a step graph."""

    id: str
    prefix: str
    """Its JSON text up to the value of ``status``."""
    kind: StepKind
    after: tuple[int, ...]
    """The positions of the steps that it follows."""
    branch: bool | None
    """The result of the run's condition with which it is executed; None: any."""
    each: bool
    """Whether it is the body of the loop step above."""
    runs: str | None
    """The workflow that a sub-workflow step starts."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A workflow. Its steps are in an order that respects their dependencies."""

    id: str
    trigger: str
    weight: int
    input: str
    output: str
    steps: tuple[Step, ...]


def _paragraphs(text: str) -> Iterator[tuple[list[str], dict[str, str], list[str]]]:
    """Yield the words of each paragraph's first line, its ``in`` and ``out`` texts, and its other lines.

    A line that is indented by four spaces continues the one above.
    """
    for paragraph in text.strip().split("\n\n"):
        first, *lines = paragraph.replace("\n    ", "").splitlines()
        payloads = {line[:4].strip(): line[4:] for line in lines if line.startswith(("in  ", "out "))}
        yield first.split(), payloads, [line for line in lines if not line.startswith(("in  ", "out "))]


def _step_kinds() -> dict[str, StepKind]:
    """Return the kinds of the table by name."""
    return {
        name: StepKind(
            type=name.partition(".")[0],
            typical_ms=int(typical_ms),
            model=model[0] if model else None,
            input=payloads.get("in"),
            output=payloads["out"].replace("USAGE", _USAGE),
        )
        for (name, typical_ms, *model), payloads, _ in _paragraphs(_STEP_KINDS)
    }


def _steps(lines: list[str], kinds: dict[str, StepKind]) -> tuple[Step, ...]:
    steps: list[Step] = []
    positions: dict[str, int] = {}
    for position, line in enumerate(lines):
        id_, name, kind_name, words = (part.strip() for part in f"{line}|".split("|")[:4])
        kind = kinds[kind_name]
        flags = dict(word.partition(":")[::2] for word in words.split())
        after = [positions[other] for other in flags["after"].split(",")] if "after" in flags else [position - 1]
        identity = json.dumps({"id": id_, "name": name, "type": kind.type}, separators=(",", ":"))
        steps.append(
            Step(
                id=id_,
                prefix=f'{identity[:-1]},"status":"',
                kind=kind,
                after=tuple(after) if position else (),
                branch={"yes": True, "no": False}.get(flags.get("if", "")),
                each="each" in flags,
                runs=flags.get("runs"),
            )
        )
        positions[id_] = position
    return tuple(steps)


def workflows() -> tuple[Workflow, ...]:
    """Return the workflows of the table."""
    kinds = _step_kinds()
    return tuple(
        Workflow(id_, trigger, int(weight), payloads["in"], payloads["out"], _steps(lines, kinds))
        for (id_, trigger, weight), payloads, lines in _paragraphs(_WORKFLOWS)
    )

"""The kinds of steps in generated workflows: input, output and typical duration of each, as a text table; no I/O.

Payloads are ``%``-templates for the values of one run (see ``generate``), written as JSON without spaces, so that a
generated document is canonical.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

    name: str
    typical_ms: int
    model: str | None
    input: str | None
    output: str

    @property
    def type(self) -> str:
        """The step type in run documents: the part of the name before the dot."""
        return self.name.partition(".")[0]


def paragraphs(text: str) -> Iterator[tuple[list[str], dict[str, str], list[str]]]:
    """Yield the words of each paragraph's first line, its ``in`` and ``out`` texts, and its other lines.

    A line that is indented by four spaces continues the one above.
    """
    for paragraph in text.strip().split("\n\n"):
        first, *lines = paragraph.replace("\n    ", "").splitlines()
        payloads = {line[:4].strip(): line[4:] for line in lines if line.startswith(("in  ", "out "))}
        yield first.split(), payloads, [line for line in lines if not line.startswith(("in  ", "out "))]


def step_kinds() -> dict[str, StepKind]:
    """Return the kinds of the table by name."""
    return {
        name: StepKind(
            name=name,
            typical_ms=int(typical_ms),
            model=model[0] if model else None,
            input=payloads.get("in"),
            output=payloads["out"].replace("USAGE", _USAGE),
        )
        for (name, typical_ms, *model), payloads, _ in paragraphs(_STEP_KINDS)
    }
